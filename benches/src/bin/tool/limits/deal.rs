//! Work dealt out to threads.

/// Deals `items` to as many threads as there are contexts, each with its own. Gives the items back when all is done.
///
/// # Errors
/// The first one of any thread.
pub fn deal<I: Send, C: Send>(
    items: Vec<I>,
    contexts: impl IntoIterator<Item = C>,
    work: impl Fn(&mut C, &mut I) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<Vec<I>> {
    let queue = std::sync::Mutex::new(items.into_iter());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    let (next, work) = (&next, &work);
    std::thread::scope(|scope| {
        let run = |mut context: C| {
            scope.spawn(move || {
                let mut done = Vec::new();
                while let Some(mut item) = next() {
                    work(&mut context, &mut item)?;
                    done.push(item);
                }
                anyhow::Ok(done)
            })
        };
        let workers: Vec<_> = contexts.into_iter().map(run).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| anyhow::anyhow!("a limit's thread panicked"))??);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        let mut done = deal((0..100).collect(), vec![7; 3], |add, item: &mut i32| {
            *item += *add;
            Ok(())
        })
        .unwrap();
        done.sort_unstable();
        assert_eq!(done, (7..107).collect::<Vec<_>>());
    }

    #[test]
    fn the_error_of_a_thread_is_that_of_all() {
        let found = deal(vec![1, 2, 3], vec![(); 2], |(), item| {
            anyhow::ensure!(*item != 2, "two");
            Ok(())
        });
        assert_eq!(found.unwrap_err().to_string(), "two");
    }
}
