use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

const FRESH: Freshness =
    Freshness { ttl: Duration::from_secs(3600), negative_ttl: Duration::from_secs(3600), revalidate: false };
const AGAIN: Freshness = Freshness { revalidate: true, ..FRESH };
const OLD: Freshness = Freshness { ttl: Duration::ZERO, negative_ttl: Duration::ZERO, revalidate: false };

fn cache() -> Arc<AnswerCache<u32>> {
    AnswerCache::new(1 << 20, |_| 4)
}

/// A fetch that counts its calls and gives what it is told.
async fn ask(
    cache: &Arc<AnswerCache<u32>>,
    calls: &Arc<AtomicU32>,
    freshness: Freshness,
    gives: Result<u32>,
) -> (Result<u32>, Outcome) {
    let fetch = || {
        calls.fetch_add(1, Ordering::SeqCst);
        std::future::ready(gives.clone())
    };
    let (answer, outcome) = cache.get("key", freshness, fetch).await;
    (answer.map(|value| *value), outcome)
}

fn error(code: Code) -> Result<u32> {
    Err(Error::new(code, "no"))
}

#[tokio::test]
async fn fresh_answers_are_kept_and_revalidation_asks_again() {
    let (cache, calls) = (cache(), Arc::default());
    assert_eq!(ask(&cache, &calls, FRESH, Ok(1)).await.1, Outcome::Miss);
    let (answer, outcome) = ask(&cache, &calls, FRESH, Ok(2)).await;
    assert_eq!((answer.unwrap(), outcome), (1, Outcome::Hit));
    assert_eq!(ask(&cache, &calls, AGAIN, Ok(3)).await.0.unwrap(), 3);
    assert_eq!(ask(&cache, &calls, OLD, Ok(4)).await.0.unwrap(), 4);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn only_not_found_is_remembered_among_errors() {
    let (cache, calls) = (cache(), Arc::default());
    assert!(ask(&cache, &calls, FRESH, error(Code::PermissionDenied)).await.0.is_err());
    assert!(ask(&cache, &calls, FRESH, error(Code::NotFound)).await.0.is_err());
    assert_eq!(ask(&cache, &calls, FRESH, Ok(1)).await.0.unwrap_err().code(), Code::NotFound);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    assert_eq!(ask(&cache, &calls, AGAIN, Ok(1)).await.0.unwrap(), 1);
}

#[tokio::test]
async fn an_old_answer_stands_in_while_the_origin_is_away() {
    let (cache, calls) = (cache(), Arc::default());
    cache.seed("key", 7);
    let (answer, outcome) = ask(&cache, &calls, FRESH, error(Code::Unavailable)).await;
    assert_eq!((answer.unwrap(), outcome), (7, Outcome::Stale));
    assert_eq!(ask(&cache, &calls, FRESH, Ok(8)).await.1, Outcome::Stale, "the origin is left alone for a while");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(ask(&cache, &calls, AGAIN, error(Code::Unavailable)).await.0.unwrap_err().code(), Code::Unavailable);
    assert_eq!(ask(&cache, &calls, OLD, error(Code::NotFound)).await.0.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn many_askers_share_one_fetch() {
    let cache = cache();
    let calls = Arc::new(AtomicU32::new(0));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let askers = (0..20).map(|_| {
        let (cache, calls, gate) = (cache.clone(), calls.clone(), gate.clone());
        tokio::spawn(async move {
            let fetch = || {
                calls.fetch_add(1, Ordering::SeqCst);
                let gate = gate.clone();
                async move {
                    let _open = gate.acquire_owned().await;
                    Ok(5)
                }
            };
            *cache.get("key", FRESH, fetch).await.0.unwrap()
        })
    });
    let askers: Vec<_> = askers.collect();
    tokio::task::yield_now().await;
    gate.add_permits(20);
    for asker in askers {
        assert_eq!(asker.await.unwrap(), 5);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_revalidation_does_not_join_a_fetch_that_left_before_it() {
    let cache = cache();
    let calls = Arc::new(AtomicU32::new(0));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let fetch = {
        let (calls, gate) = (calls.clone(), gate.clone());
        move || {
            let number = calls.fetch_add(1, Ordering::SeqCst);
            let gate = gate.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(number)
            }
        }
    };
    let early = tokio::spawn({
        let (cache, fetch) = (cache.clone(), fetch.clone());
        async move { cache.get("key", FRESH, fetch).await.0.map(|value| *value) }
    });
    while calls.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let late = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get("key", AGAIN, fetch).await.0.map(|value| *value) }
    });
    tokio::task::yield_now().await;
    gate.add_permits(2);
    assert_eq!(early.await.unwrap().unwrap(), 0);
    assert_eq!(late.await.unwrap().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_comes_as_an_answer_lands_does_not_ask_again() {
    let cache = AnswerCache::<u32>::new(64 << 20, |_| 4);
    for round in 0..20_000 {
        let calls = Arc::new(AtomicU32::new(0));
        let key = format!("key {round}");
        let asks = (0..4).map(|_| {
            let (cache, calls, key) = (cache.clone(), calls.clone(), key.clone());
            tokio::spawn(async move {
                let fetch = || {
                    calls.fetch_add(1, Ordering::SeqCst);
                    std::future::ready(Ok(1))
                };
                cache.get(&key, FRESH, fetch).await.0.unwrap()
            })
        });
        futures::future::join_all(asks).await;
        assert_eq!(calls.load(Ordering::SeqCst), 1, "{key}");
    }
}
