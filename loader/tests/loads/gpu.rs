//! Loads onto devices that are copied to from page-locked memory: a card of this test, which can be told to hold copies
//! back and to break down, and the real backend over the fake driver.

mod card;
mod failing;
mod fake;
pub mod fixture;
mod staging;
