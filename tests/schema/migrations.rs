//! Every migration goes up and down, and leaves what it found.

use switchboard::db::migrate;

use super::catalogue::{difference, dump};
use crate::support::TestDb;
use crate::support::database::{migration_names, migration_text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_down_and_up_again_leaves_the_same_schema() {
    let db = TestDb::empty().await;
    let client = db.connect().await;
    let nothing = dump(&client).await;
    let all = migration_names().len();

    assert_eq!(migrate::up(&db.secret_url()).await.unwrap().len(), all);
    let first = dump(&client).await;
    assert!(first.lines().count() > nothing.lines().count() + 100, "the dump sees the tables");
    assert!(migrate::up(&db.secret_url()).await.unwrap().is_empty(), "a second time there is nothing to do");

    assert_eq!(migrate::down(&db.secret_url(), usize::MAX).await.unwrap().len(), all);
    let left = difference(&nothing, &dump(&client).await);
    assert!(left.is_empty(), "after the way down there is still:\n{left}");
    assert!(migrate::down(&db.secret_url(), 1).await.unwrap().is_empty(), "there is nothing more to take back");

    assert_eq!(migrate::up(&db.secret_url()).await.unwrap().len(), all);
    let changed = difference(&first, &dump(&client).await);
    assert!(changed.is_empty(), "the second way up leads elsewhere:\n{changed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_migration_takes_back_exactly_what_it_did() {
    // One database goes up step by step, by the text of the migrations; the other comes down by the real way.
    let (rising, falling) = tokio::join!(TestDb::empty(), TestDb::create());
    let (up, down) = tokio::join!(rising.connect(), falling.connect());
    let mut steps = vec![dump(&up).await];
    for name in migration_names() {
        up.batch_execute(&format!("BEGIN; {}; COMMIT", migration_text(&name, "up.sql"))).await.expect(&name);
        steps.push(dump(&up).await);
    }
    for (index, name) in migration_names().iter().enumerate().rev() {
        let different = difference(&steps[index + 1], &dump(&down).await);
        assert!(different.is_empty(), "before {name} is taken back:\n{different}");
        let reverted = migrate::down(&falling.secret_url(), 1).await.unwrap();
        assert_eq!(reverted.len(), 1);
        let different = difference(&steps[index], &dump(&down).await);
        assert!(different.is_empty(), "{name} leaves traces:\n{different}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_together_migrate_once() {
    let db = TestDb::empty().await;
    let url = db.secret_url();
    let nodes: Vec<_> = (0..4)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { migrate::up(&url).await })
        })
        .collect();
    let mut applied = Vec::new();
    for node in nodes {
        applied.push(node.await.unwrap().unwrap().len());
    }
    applied.sort_unstable();
    assert_eq!(applied, [0, 0, 0, migration_names().len()]);
}
