//! What large frames take before they are complete, over all links of an endpoint.
//!
//! A large frame is held until its last byte is there, and a peer may send eight at once. Within the
//! budget nobody waits. Beyond it one frame at a time goes on, so that what is there becomes complete
//! and makes room; whoever does not move then, or not fast enough at its turn, loses its link.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// A frame that does not move for so long makes room, if room is needed.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A frame whose turn it is has so long to become complete.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// The account of one endpoint.
#[derive(Debug)]
pub(crate) struct Loading {
    bytes: AtomicUsize,
    bytes_max: usize,
    /// Whose turn it is.
    turn: Arc<Semaphore>,
}

impl Loading {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicUsize::new(0), bytes_max, turn: Arc::new(Semaphore::new(1)) })
    }

    /// A frame begins to come.
    pub(crate) fn begin(self: &Arc<Self>) -> Load {
        Load { loading: Arc::clone(self), bytes: 0, turn: None }
    }

    fn is_over(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > self.bytes_max
    }
}

/// One frame that is coming. Dropping it takes it off the account.
#[derive(Debug)]
pub(crate) struct Load {
    loading: Arc<Loading>,
    bytes: usize,
    turn: Option<(OwnedSemaphorePermit, Instant)>,
}

impl Load {
    /// So many bytes more are held.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.loading.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Waits until it may go on. Cancel-safe.
    pub(crate) async fn may_go_on(&mut self) {
        if self.turn.is_none() && self.loading.is_over() {
            // Never closed.
            if let Ok(turn) = Arc::clone(&self.loading.turn).acquire_owned().await {
                self.turn = Some((turn, Instant::now() + TURN_TIMEOUT));
            }
        }
    }

    /// Whether it must give way: it has not moved for [`STALL_TIMEOUT`], or its turn is over.
    pub(crate) fn must_give_way(&self, is_stalled: bool) -> bool {
        let is_late = self.turn.as_ref().is_some_and(|(_, until)| Instant::now() >= *until);
        self.loading.is_over() && (is_stalled || is_late)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.loading.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn within_the_budget_nobody_waits_and_beyond_it_one_at_a_time() {
        let loading = Loading::new(100);
        let (mut one, mut two, mut three) = (loading.begin(), loading.begin(), loading.begin());
        one.add(60);
        one.may_go_on().await;
        assert!(one.turn.is_none() && !one.must_give_way(true));
        two.add(60);
        one.may_go_on().await;
        assert!(one.turn.is_some());
        let waiting = tokio::time::timeout(Duration::from_secs(60), two.may_go_on()).await;
        assert!(waiting.is_err(), "it is not its turn");
        assert!(two.must_give_way(true) && !two.must_give_way(false));
        // a minute is more than a turn
        assert!(one.must_give_way(false));
        drop(one);
        three.may_go_on().await;
        assert!(three.turn.is_none(), "there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_with_its_frame() {
        let loading = Loading::new(10);
        let (mut one, mut two) = (loading.begin(), loading.begin());
        one.add(20);
        two.add(20);
        one.may_go_on().await;
        drop(one);
        two.may_go_on().await;
        assert!(two.turn.is_some());
        drop(two);
        assert_eq!(loading.bytes.load(Ordering::Relaxed), 0);
    }
}
