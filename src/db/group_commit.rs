//! Group commit: many callers, one transaction.
//!
//! A writer task drains whatever callers are waiting, writes their items with one transaction and answers each. There is no
//! artificial delay: the next batch forms while the previous one commits. An item that the database refuses does not fail
//! its neighbours: the batch is split until the culprit stands alone. The work runs on the writer's runtime, so a caller
//! that goes away leaves a committed item, never half of one.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::DbError;

/// Writes batches; what a batch means is the implementor's.
pub trait BatchWriter: Send + Sync + 'static {
    /// One caller's item.
    type Item: Send + Sync + 'static;
    /// What a caller learns when its item was committed.
    type Answer: Send + 'static;

    /// Writes `items` in one transaction and answers them in their order. An error means that nothing was written.
    fn write(&self, items: &[Self::Item]) -> impl Future<Output = Result<Vec<Self::Answer>, DbError>> + Send;

    /// How much of a batch an item takes up.
    fn weight(&self, _item: &Self::Item) -> usize {
        1
    }

    /// True when the two items must not be in one batch; the later one then waits for the next.
    fn conflict(&self, _earlier: &Self::Item, _later: &Self::Item) -> bool {
        false
    }

    /// A key by which [`BatchWriter::conflict`] need only be asked of items with equal keys; `None` conflicts with nothing.
    fn conflict_key(&self, _item: &Self::Item) -> Option<u64> {
        None
    }
}

/// Why an item was not written.
#[derive(Debug, thiserror::Error, Clone)]
pub enum GroupCommitError {
    /// Too many are waiting already.
    #[error("too much is waiting to be written")]
    Overloaded,
    /// The writer has ended.
    #[error("shutting down")]
    Stopped,
    /// The database said no.
    #[error("{0}")]
    Database(Arc<DbError>),
}

type Waiting<W> = (<W as BatchWriter>::Item, oneshot::Sender<Result<<W as BatchWriter>::Answer, GroupCommitError>>);

/// The callers' end of a group commit; clones share one writer.
pub struct GroupCommit<W: BatchWriter> {
    queue: mpsc::Sender<Waiting<W>>,
}

impl<W: BatchWriter> Clone for GroupCommit<W> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<W: BatchWriter> std::fmt::Debug for GroupCommit<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupCommit").field("free", &self.queue.capacity()).finish()
    }
}

impl<W: BatchWriter> GroupCommit<W> {
    /// Starts the writer on the current runtime. At most `depth` callers wait; a batch weighs at most `most`, unless one item does more.
    /// `name` labels its metrics.
    pub fn start(name: &'static str, writer: W, depth: usize, most: usize) -> Self {
        let (queue, waiting) = mpsc::channel(depth);
        tokio::spawn(run(name, writer, waiting, most));
        Self { queue }
    }

    /// Waits until `item` is committed.
    ///
    /// # Errors
    /// [`GroupCommitError`]; except where the database went away during the commit itself, nothing was written.
    pub async fn write(&self, item: W::Item) -> Result<W::Answer, GroupCommitError> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send((item, answer)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => GroupCommitError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => GroupCommitError::Stopped,
        })?;
        answered.await.unwrap_or(Err(GroupCommitError::Stopped))
    }
}

async fn run<W: BatchWriter>(name: &'static str, writer: W, mut waiting: mpsc::Receiver<Waiting<W>>, most: usize) {
    let mut held: VecDeque<Waiting<W>> = VecDeque::new();
    let mut drained = Vec::with_capacity(most);
    loop {
        if held.is_empty() && waiting.recv_many(&mut drained, most).await == 0 {
            return;
        }
        while held.len() + drained.len() < most
            && let Ok(next) = waiting.try_recv()
        {
            drained.push(next);
        }
        held.extend(drained.drain(..));
        let (items, answers) = form_batch(&writer, &mut held, most);
        metrics::histogram!("switchboard_group_commit_batch_items", "group" => name).record(count(items.len()));
        let started = tokio::time::Instant::now();
        write_or_split(&writer, items, answers).await;
        metrics::histogram!("switchboard_group_commit_seconds", "group" => name)
            .record(started.elapsed().as_secs_f64());
    }
}

#[expect(clippy::cast_precision_loss, reason = "a batch is far smaller than 2^52")]
fn count(items: usize) -> f64 {
    items as f64
}

type Answers<W> = Vec<oneshot::Sender<Result<<W as BatchWriter>::Answer, GroupCommitError>>>;

/// Takes items from the front of `held` into a batch; one that conflicts with the batch stays for the next.
fn form_batch<W: BatchWriter>(writer: &W, held: &mut VecDeque<Waiting<W>>, most: usize) -> (Vec<W::Item>, Answers<W>) {
    let mut items: Vec<W::Item> = Vec::with_capacity(held.len().min(most));
    let mut answers = Vec::with_capacity(held.len().min(most));
    let mut later = VecDeque::new();
    let mut weight = 0;
    let mut keys: std::collections::HashMap<u64, Vec<usize>> = std::collections::HashMap::new();
    while let Some((item, answer)) = held.pop_front() {
        let key = writer.conflict_key(&item);
        let clashes = key.is_some_and(|key| {
            keys.get(&key).is_some_and(|earlier| {
                earlier.iter().filter_map(|index| items.get(*index)).any(|earlier| writer.conflict(earlier, &item))
            })
        });
        let weighs = writer.weight(&item);
        if !items.is_empty() && weight + weighs > most {
            // It is the next batch's first, whatever smaller ones stand behind it.
            later.push_back((item, answer));
            later.append(held);
            break;
        }
        if clashes {
            later.push_back((item, answer));
            continue;
        }
        weight += weighs;
        if let Some(key) = key {
            keys.entry(key).or_default().push(items.len());
        }
        items.push(item);
        answers.push(answer);
    }
    *held = later;
    (items, answers)
}

/// Contention is worth a few tries; a refusal splits the batch; an absent database answers everybody.
async fn write_or_split<W: BatchWriter>(writer: &W, items: Vec<W::Item>, answers: Answers<W>) {
    const TRIES: u32 = 5;
    let mut parts = vec![(items, answers)];
    while let Some((mut items, mut answers)) = parts.pop() {
        let mut tries = 0;
        let fault = loop {
            match writer.write(&items).await {
                Ok(results) => {
                    for (answer, result) in answers.drain(..).zip(results) {
                        // A caller that went away needs no answer.
                        let _gone = answer.send(Ok(result));
                    }
                    break None;
                }
                Err(DbError::Contended(why)) if tries < TRIES => {
                    tries += 1;
                    tracing::debug!(why, tries, "a batch lost against a concurrent transaction");
                }
                Err(fault) => break Some(fault),
            }
        };
        let Some(fault) = fault else { continue };
        if items.len() > 1 && !matches!(fault, DbError::Unavailable(_)) {
            let half = items.len() / 2;
            let (right, right_answers) = (items.split_off(half), answers.split_off(half));
            parts.push((right, right_answers));
            parts.push((items, answers));
            continue;
        }
        let fault = Arc::new(fault);
        for answer in answers {
            let _gone = answer.send(Err(GroupCommitError::Database(Arc::clone(&fault))));
        }
    }
}
