use std::collections::HashMap;

use parking_lot::Mutex;

use super::*;

/// Answers from a table that the test changes.
#[derive(Default)]
struct Table(Mutex<HashMap<String, Identity>>);

#[async_trait::async_trait]
impl Probe for Table {
    async fn identity(&self, address: &str) -> Result<Identity> {
        if address.starts_with("slow") {
            std::future::pending::<()>().await;
        }
        let found = self.0.lock().get(address).cloned();
        found.ok_or_else(|| Error::new(Code::Unavailable, "connection refused"))
    }
}

fn identity(byte: u8, weight: u64) -> Identity {
    Identity {
        id: MemberId::from_bytes([byte; 16]),
        weight,
        data: "127.0.0.1:1".into(),
        control: "127.0.0.1:2".into(),
        unix_socket: None,
        host_id: String::new(),
        version: String::new(),
    }
}

fn addresses(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn started(table: &Arc<Table>, names: &[&str], token: &CancellationToken) -> Arc<StaticMembership> {
    let probe: Arc<dyn Probe> = table.clone();
    StaticMembership::start(addresses(names), probe, Duration::from_millis(10), token.clone()).await.unwrap()
}

#[tokio::test]
async fn the_first_round_waits_for_answers_and_time_outs() {
    let table = Arc::new(Table::default());
    table.0.lock().insert("a:1".into(), identity(1, 4));
    let token = CancellationToken::new();
    let membership = started(&table, &["a:1", "slow:1", "b:1"], &token).await;
    let view = membership.view();
    assert_eq!((view.epoch, view.members.len()), (1, 1));
    assert_eq!(membership.ring().owners(b"key", 2)[0].id(), MemberId::from_bytes([1; 16]));
}

#[tokio::test]
async fn members_join_when_they_answer_and_stay_when_they_stop() {
    let table = Arc::new(Table::default());
    let token = CancellationToken::new();
    let membership = started(&table, &["a:1", "b:1"], &token).await;
    assert_eq!(*membership.view(), View::default());
    let mut views = membership.watch();

    table.0.lock().insert("b:1".into(), identity(2, 4));
    views.changed().await.unwrap();
    assert_eq!(views.borrow_and_update().epoch, 1);
    table.0.lock().clear();
    table.0.lock().insert("a:1".into(), identity(1, 4));
    views.changed().await.unwrap();
    let view = views.borrow_and_update().clone();
    assert_eq!((view.epoch, view.members.len()), (2, 2), "b has stopped answering and stays");
    assert_eq!(membership.ring().members().len(), 2);
}

#[tokio::test]
async fn a_member_under_two_addresses_counts_once_and_a_replaced_one_leaves() {
    let table = Arc::new(Table::default());
    table.0.lock().insert("a:1".into(), identity(1, 4));
    table.0.lock().insert("b:1".into(), identity(1, 4));
    let token = CancellationToken::new();
    let membership = started(&table, &["b:1", "a:1", "a:1"], &token).await;
    assert_eq!(membership.view().members.len(), 1);
    assert_eq!(membership.view().members[0].address, "a:1");
    let mut views = membership.watch();
    // A new disk in the same place: the old id is gone from both addresses.
    table.0.lock().insert("a:1".into(), identity(3, 4));
    table.0.lock().insert("b:1".into(), identity(3, 4));
    views.changed().await.unwrap();
    let view = views.borrow_and_update().clone();
    assert_eq!(view.members.iter().map(Member::id).collect::<Vec<_>>(), [MemberId::from_bytes([3; 16])]);
}

#[tokio::test]
async fn probing_ends_with_the_token() {
    let table = Arc::new(Table::default());
    let token = CancellationToken::new();
    let membership = started(&table, &["a:1"], &token).await;
    token.cancel();
    let weak = Arc::downgrade(&membership);
    drop(membership);
    while weak.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn malformed_lists_are_refused() {
    for bad in [&[][..], &["host"], &[":7070"], &["host:0"], &["host:x"], &["host:70700"]] {
        let probe: Arc<dyn Probe> = Arc::new(Table::default());
        let started =
            StaticMembership::start(addresses(bad), probe, Duration::from_secs(1), CancellationToken::new()).await;
        assert_eq!(started.unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
    }
}
