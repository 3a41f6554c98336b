//! The states of blocks against a reference model: one word for each block.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const MANY: Range<u32> = 0..u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Missing,
    Filling,
    Ready,
}

#[derive(Debug, Clone)]
enum Step {
    Claim(Range<u32>),
    /// Gives back the n-th claim that is held.
    Finish(usize, bool),
    Wait(Range<u32>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Also ranges that are empty, turned around or beyond the end.
    let range = || (0u32..20, 0u32..20).prop_map(|(start, end)| Range { start, end });
    let finish = (0usize..8, prop::bool::weighted(0.6)).prop_map(|(nth, ready)| Step::Finish(nth, ready));
    let step = prop_oneof![3 => range().prop_map(Step::Claim), 2 => finish, 1 => range().prop_map(Step::Wait)];
    proptest::collection::vec(step, 0..60)
}

/// What a claim must answer: the first run of missing blocks.
fn expected(states: &[State], range: &Range<u32>) -> Answer {
    let within = |block: u32| range.contains(&block) && (block as usize) < states.len();
    let is = |block: u32, state| within(block) && states[block as usize] == state;
    let Some(first) = (0..32).find(|block| is(*block, State::Missing)) else {
        return if (0..32).any(|block| is(block, State::Filling)) { Answer::Busy } else { Answer::Ready };
    };
    let end = (first..32).find(|block| !is(*block, State::Missing)).unwrap_or(32);
    Answer::Fill(first..end)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 4 } else { 512 }, ..ProptestConfig::default() })]
    #[test]
    fn behave_as_one_word_for_each_block(count in 0u32..=16, steps in steps()) {
        let blocks = Blocks::new(count);
        let mut states = vec![State::Missing; count as usize];
        let mut held: Vec<Range<u32>> = Vec::new();
        for step in steps {
            match step {
                Step::Claim(range) => {
                    let answer = blocks.claim(&range);
                    prop_assert_eq!(&answer, &expected(&states, &range));
                    if let Answer::Fill(run) = answer {
                        states[run.start as usize..run.end as usize].fill(State::Filling);
                        held.push(run);
                    }
                }
                Step::Finish(nth, ready) if !held.is_empty() => {
                    let run = held.swap_remove(nth % held.len());
                    blocks.finish(&run, ready);
                    let state = if ready { State::Ready } else { State::Missing };
                    states[run.start as usize..run.end as usize].fill(state);
                }
                Step::Finish(..) => {}
                Step::Wait(range) => {
                    // Must return at once unless somebody fills one of them; then it must not hang either.
                    let busy = (0..count).any(|at| range.contains(&at) && states[at as usize] == State::Filling);
                    blocks.wait(&range, if busy { Duration::ZERO } else { Duration::MAX });
                }
            }
            for (block, state) in (0u32..).zip(&states) {
                prop_assert_eq!(blocks.are_ready(&(block..block + 1)), *state == State::Ready);
            }
            prop_assert_eq!(blocks.are_ready(&MANY), states.iter().all(|state| *state == State::Ready));
        }
    }
}

#[test]
fn who_waits_wakes_when_the_filler_is_done_or_gives_up() {
    for ready in [true, false] {
        let blocks = Arc::new(Blocks::new(16));
        assert_eq!(blocks.claim(&(2..5)), Answer::Fill(2..5));
        assert_eq!(blocks.claim(&(3..4)), Answer::Busy);
        let waiting = {
            let blocks = blocks.clone();
            std::thread::spawn(move || {
                blocks.wait(&(4..9), Duration::MAX);
                blocks.claim(&(4..5))
            })
        };
        blocks.finish(&(2..5), ready);
        assert_eq!(waiting.join().unwrap(), if ready { Answer::Ready } else { Answer::Fill(4..5) });
    }
}
