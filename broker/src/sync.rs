//! What an acknowledgement promises beyond the life of the process: file contents on the disk itself.
//!
//! Every write marks its file. One thread syncs the marked files: once an interval ([`Fsync::Interval`]), or at once
//! for all writers that wait, as one group ([`Fsync::Acknowledge`]). A file stays marked until it is synced, also when
//! its segment was closed meanwhile. A failed sync is fatal: the kernel may have dropped the pages, so nobody is told
//! that they are safe.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::{Failure, Fsync};

/// The files to sync and who waits for it.
pub(crate) struct Syncer {
    state: Mutex<State>,
    /// Held while files are synced: who comes later must not overtake.
    syncing: Mutex<()>,
    wake: Condvar,
    policy: Fsync,
}

#[derive(Default)]
struct State {
    marked: Vec<Arc<File>>,
    waiting: Vec<oneshot::Sender<()>>,
    afterwards: Vec<Box<dyn FnOnce() + Send>>,
    closed: bool,
}

/// Comes true when all that was marked before it is on the disk.
pub(crate) struct Ticket(oneshot::Receiver<()>);

/// The sync failed or the broker ended: nothing may be acknowledged.
#[derive(Debug, thiserror::Error)]
#[error("the write is not known to be on the disk")]
pub(crate) struct NotSynced;

impl Ticket {
    pub(crate) async fn wait(self) -> Result<(), NotSynced> {
        self.0.await.map_err(|_| NotSynced)
    }

    /// For I/O threads.
    pub(crate) fn wait_blocking(self) -> Result<(), NotSynced> {
        self.0.blocking_recv().map_err(|_| NotSynced)
    }
}

/// Has the content of a file, or the names in a folder, on the disk when it returns.
pub(crate) fn to_disk(file: &File) -> std::io::Result<()> {
    #[cfg(test)]
    let seen = crate::power_cut::before_sync(file);
    file.sync_all()?;
    #[cfg(test)]
    crate::power_cut::after_sync(seen);
    Ok(())
}

impl Syncer {
    /// Starts the thread; it ends on [`Syncer::close`] or after it told `failed` of a failure.
    pub(crate) fn start(
        policy: Fsync,
        failed: impl FnOnce(Failure) + Send + 'static,
    ) -> std::io::Result<(Arc<Syncer>, JoinHandle<()>)> {
        let syncer =
            Arc::new(Syncer { state: Mutex::default(), syncing: Mutex::default(), wake: Condvar::new(), policy });
        let own = syncer.clone();
        let thread = std::thread::Builder::new().name("broker-sync".to_owned()).spawn(move || {
            if let Err(source) = own.run() {
                own.close();
                failed(Failure::Sync { source });
            }
        })?;
        Ok((syncer, thread))
    }

    /// Notes that `file` has content that is not on the disk.
    pub(crate) fn mark(&self, file: &Arc<File>) {
        let mut state = self.lock();
        if !state.marked.iter().any(|other| Arc::ptr_eq(other, file)) {
            state.marked.push(file.clone());
        }
    }

    /// Whether an acknowledgement waits for the disk.
    pub(crate) fn acknowledges(&self) -> bool {
        self.policy == Fsync::Acknowledge
    }

    /// Does something when all that was marked before is on the disk. It does not ask for that: a ticket does.
    pub(crate) fn afterwards(&self, act: Box<dyn FnOnce() + Send>) {
        self.lock().afterwards.push(act);
    }

    /// What to wait for before an acknowledgement; `None` if the policy asks for nothing.
    pub(crate) fn ticket(&self) -> Option<Ticket> {
        if !self.acknowledges() {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        // After the end the sender is dropped, and the ticket says that nothing was synced.
        if !state.closed {
            state.waiting.push(sender);
            self.wake.notify_one();
        }
        Some(Ticket(receiver))
    }

    /// Waits until what was marked is on the disk, if the policy asks for it.
    pub(crate) fn settle(&self) -> Result<(), NotSynced> {
        self.ticket().map_or(Ok(()), Ticket::wait_blocking)
    }

    /// Syncs what is marked, whatever the policy.
    pub(crate) fn sync_now(&self) -> std::io::Result<()> {
        let _syncing = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, waiting, afterwards) = {
            let mut state = self.lock();
            let afterwards = std::mem::take(&mut state.afterwards);
            (std::mem::take(&mut state.marked), std::mem::take(&mut state.waiting), afterwards)
        };
        for file in files {
            to_disk(&file)?;
        }
        for act in afterwards {
            act();
        }
        for waiter in waiting {
            let _ = waiter.send(());
        }
        Ok(())
    }

    /// Ends the thread; who still waits learns that nothing was synced.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
        state.afterwards.clear();
        self.wake.notify_all();
    }

    fn run(&self) -> std::io::Result<()> {
        loop {
            let mut state = self.lock();
            match self.policy {
                Fsync::Interval { every } => {
                    let until = Instant::now() + every;
                    while !state.closed {
                        let left = until.saturating_duration_since(Instant::now());
                        if left == Duration::ZERO {
                            break;
                        }
                        state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                    }
                }
                Fsync::Acknowledge => {
                    while !state.closed && state.waiting.is_empty() {
                        state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            }
            if state.closed {
                return Ok(());
            }
            drop(state);
            self.sync_now()?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_comes_true_and_an_interval_needs_none() {
        let (syncer, thread) = Syncer::start(Fsync::Acknowledge, |_| ()).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap());
        syncer.mark(&file);
        syncer.settle().unwrap();
        assert!(syncer.lock().marked.is_empty());
        syncer.close();
        thread.join().unwrap();
        assert!(syncer.settle().is_err(), "nothing is acknowledged after the end");

        let (syncer, thread) = Syncer::start(Fsync::Interval { every: Duration::from_secs(3600) }, |_| ()).unwrap();
        assert!(syncer.ticket().is_none());
        syncer.close();
        thread.join().unwrap();
    }

    #[test]
    fn a_file_stays_marked_until_it_is_synced() {
        let (syncer, thread) = Syncer::start(Fsync::Interval { every: Duration::from_secs(3600) }, |_| ()).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap());
        syncer.mark(&file);
        syncer.mark(&file);
        assert_eq!(syncer.lock().marked.len(), 1);
        syncer.sync_now().unwrap();
        assert!(syncer.lock().marked.is_empty());
        syncer.close();
        thread.join().unwrap();
    }
}
