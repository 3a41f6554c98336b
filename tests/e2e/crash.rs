//! A kill or a fault can strike a save anywhere. Each test is a row of the crash matrix: the real process is killed by
//! SIGKILL at a named point, or something breaks, and then: a checkpoint is whole or not there at all, what was acknowledged
//! holds, and what was sent is not sent again but for one part a stream.

mod disk;
mod durable;
mod origin;
mod ranks;
mod site;
mod slabs;
mod trainer;
mod upload;
mod visible;
