//! Runs everything that an endpoint does in one task.
//!
//! A packet passes several futures: socket, connection, reader, whoever owns the endpoint, writer,
//! connection again. As tasks of the runtime each would wake the next one, on several threads by
//! system calls that cost more than the work. As members of a crew they are polled in turn, in the
//! order in which they were woken, so that what came at once also goes through every stage at once.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use tokio::runtime::Handle;
use tokio::task::unconstrained;

use crate::sync::lock;

/// Members polled before the runtime may run other tasks.
const POLLS_PER_TURN: usize = 64;
/// Members that wait for each hand at work before another one helps.
const READY_PER_HAND: usize = 8;

/// Futures that share a task of the runtime; under load a few tasks, each future in one at a time.
///
/// Cheap to clone; dropping it ends nothing. Members end when they are done, or when the runtime
/// does.
#[derive(Clone)]
pub(crate) struct Crew {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Handle,
    state: Mutex<State>,
}

struct State {
    members: HashMap<u64, Arc<Member>>,
    next_id: u64,
    ready: VecDeque<Arc<Member>>,
    hands: Vec<Hand>,
    /// How many hands are not asleep.
    awake: usize,
    is_running: bool,
    /// Counts how often the hands were started, so that those of an earlier run end.
    run: u64,
    /// The runtime is gone.
    is_gone: bool,
}

/// A task that polls members.
enum Hand {
    Awake,
    Asleep(Waker),
}

impl Crew {
    /// A crew on `runtime` without members, with `hands_max` tasks at most.
    pub(crate) fn new(runtime: Handle, hands_max: usize) -> Self {
        let state = State {
            members: HashMap::new(),
            next_id: 0,
            ready: VecDeque::new(),
            hands: (0..hands_max.max(1)).map(|_| Hand::Awake).collect(),
            awake: 0,
            is_running: false,
            run: 0,
            is_gone: false,
        };
        Self { shared: Arc::new(Shared { runtime, state: Mutex::new(state) }) }
    }

    /// Adds a member. If it panics, it ends and the others go on.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.spawn_boxed(Box::pin(future));
    }

    pub(crate) fn spawn_boxed(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let started = {
            let mut state = lock(&self.shared.state);
            if state.is_gone {
                return;
            }
            let id = state.next_id;
            state.next_id += 1;
            let member = Arc::new(Member {
                id,
                crew: Arc::clone(&self.shared),
                stage: AtomicU8::new(stage::READY),
                future: Mutex::new(Some(future)),
            });
            state.members.insert(id, Arc::clone(&member));
            if state.is_running {
                drop(state);
                self.shared.push(member);
                return;
            }
            state.ready.push_back(member);
            state.is_running = true;
            state.run += 1;
            state.awake = state.hands.len();
            state.hands.iter_mut().for_each(|hand| *hand = Hand::Awake);
            (state.run, state.hands.len())
        };
        let (run, hands) = started;
        for index in 0..hands {
            let guard = HandGuard { shared: Arc::clone(&self.shared), run };
            self.shared.runtime.spawn(unconstrained(async move {
                poll_fn(|cx| guard.shared.work(run, index, cx)).await;
            }));
        }
    }
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").finish_non_exhaustive()
    }
}

impl Shared {
    /// Polls members that are ready; ends when none is left.
    fn work(&self, run: u64, index: usize, cx: &Context<'_>) -> Poll<()> {
        for _ in 0..POLLS_PER_TURN {
            let member = {
                let mut state = lock(&self.state);
                if state.run != run || !state.is_running {
                    return Poll::Ready(());
                }
                let State { hands, awake, ready, members, .. } = &mut *state;
                let Some(hand) = hands.get_mut(index) else { return Poll::Ready(()) };
                if let Hand::Asleep(_) = hand {
                    *hand = Hand::Awake;
                    *awake += 1;
                }
                match ready.pop_front() {
                    Some(member) => member,
                    None if members.is_empty() => {
                        let sleepers = state.stop();
                        drop(state);
                        sleepers.into_iter().for_each(Waker::wake);
                        return Poll::Ready(());
                    }
                    None => {
                        *hand = Hand::Asleep(cx.waker().clone());
                        *awake -= 1;
                        return Poll::Pending;
                    }
                }
            };
            member.run();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Makes a member's turn come.
    fn push(&self, member: Arc<Member>) {
        let hand = {
            let mut state = lock(&self.state);
            if state.is_gone {
                return;
            }
            state.ready.push_back(member);
            if state.awake > 0 && state.ready.len() <= READY_PER_HAND * state.awake {
                return;
            }
            state.call_hand()
        };
        if let Some(hand) = hand {
            hand.wake();
        }
    }

    fn remove(&self, id: u64) {
        // Dropped after the lock.
        let _member = lock(&self.state).members.remove(&id);
    }
}

impl State {
    /// Takes a hand that sleeps to work.
    fn call_hand(&mut self) -> Option<Waker> {
        let hand = self.hands.iter_mut().find(|hand| matches!(hand, Hand::Asleep(_)))?;
        self.awake += 1;
        match std::mem::replace(hand, Hand::Awake) {
            Hand::Asleep(waker) => Some(waker),
            Hand::Awake => None,
        }
    }

    /// Ends the run; returns the hands that have to be told.
    fn stop(&mut self) -> Vec<Waker> {
        self.is_running = false;
        let hands = self.hands.iter_mut().map(|hand| std::mem::replace(hand, Hand::Awake));
        hands
            .filter_map(|hand| match hand {
                Hand::Asleep(waker) => Some(waker),
                Hand::Awake => None,
            })
            .collect()
    }
}

/// Drops all members when the runtime drops a hand before its work is done.
struct HandGuard {
    shared: Arc<Shared>,
    run: u64,
}

impl Drop for HandGuard {
    fn drop(&mut self) {
        let members = {
            let mut state = lock(&self.shared.state);
            if state.run != self.run || !state.is_running {
                return;
            }
            state.is_gone = true;
            state.is_running = false;
            state.ready.clear();
            std::mem::take(&mut state.members)
        };
        for member in members.into_values() {
            member.end();
        }
    }
}

/// Where a member is.
mod stage {
    /// Waits to be woken.
    pub(super) const IDLE: u8 = 0;
    /// Waits for its turn.
    pub(super) const READY: u8 = 1;
    /// Is being polled.
    pub(super) const RUNNING: u8 = 2;
    /// Is being polled and was woken meanwhile.
    pub(super) const AGAIN: u8 = 3;
    /// Is over.
    pub(super) const DONE: u8 = 4;
}

/// A future and its place in the crew.
struct Member {
    id: u64,
    crew: Arc<Shared>,
    stage: AtomicU8,
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

impl Member {
    fn run(self: Arc<Self>) {
        // Takes over what was written before the wake-ups so far.
        self.stage.swap(stage::RUNNING, Ordering::AcqRel);
        if self.poll().is_ready() {
            return self.end();
        }
        let idle = (stage::RUNNING, stage::IDLE, Ordering::AcqRel, Ordering::Acquire);
        if self.stage.compare_exchange(idle.0, idle.1, idle.2, idle.3).is_err() {
            // Woken meanwhile, or over.
            let again = (stage::AGAIN, stage::READY, Ordering::AcqRel, Ordering::Acquire);
            if self.stage.compare_exchange(again.0, again.1, again.2, again.3).is_ok() {
                let crew = Arc::clone(&self.crew);
                crew.push(self);
            }
        }
    }

    fn poll(self: &Arc<Self>) -> Poll<()> {
        let waker = Waker::from(Arc::clone(self));
        let mut slot = lock(&self.future);
        let Some(future) = slot.as_mut() else { return Poll::Ready(()) };
        let polled = catch_unwind(AssertUnwindSafe(|| {
            future.as_mut().poll(&mut Context::from_waker(&waker))
        }));
        // The panic hook has said what happened; the future is never touched again.
        polled.unwrap_or(Poll::Ready(()))
    }

    /// Drops the future.
    fn end(&self) {
        self.stage.store(stage::DONE, Ordering::Release);
        let future = lock(&self.future).take();
        if catch_unwind(AssertUnwindSafe(|| drop(future))).is_err() {
            tracing::error!("a task of an endpoint panicked while it was dropped");
        }
        self.crew.remove(self.id);
    }
}

impl Wake for Member {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let next = |now| match now {
            stage::IDLE => Some(stage::READY),
            stage::RUNNING => Some(stage::AGAIN),
            // Nothing to do, but written all the same: a mere look could come before what this
            // wake-up is about is seen by the poll that follows.
            stage::READY | stage::AGAIN => Some(now),
            _ => None,
        };
        let before = self.stage.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        if before == Ok(stage::IDLE) {
            self.crew.push(Arc::clone(self));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use tokio::sync::{Notify, mpsc, oneshot};
    use tokio::time::{sleep, timeout};

    fn crew() -> Crew {
        Crew::new(Handle::current(), 3)
    }

    /// Counts those that are dropped.
    struct Dropped(Arc<AtomicUsize>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn members_run_in_the_order_in_which_they_were_woken() {
        let crew = Crew::new(Handle::current(), 1);
        let (sender, mut order) = mpsc::unbounded_channel();
        let bells: Vec<_> = (0..3).map(|_| Arc::new(Notify::new())).collect();
        for (number, bell) in bells.iter().cloned().enumerate() {
            let sender = sender.clone();
            crew.spawn(async move {
                bell.notified().await;
                sender.send(number).unwrap();
            });
        }
        sleep(Duration::from_millis(10)).await;
        for number in [2, 0, 1] {
            bells[number].notify_one();
        }
        let came = [order.recv().await, order.recv().await, order.recv().await];
        assert_eq!(came, [Some(2), Some(0), Some(1)]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_wake_is_lost_among_many_hands() {
        const MEMBERS: usize = 300;
        const ROUNDS: usize = 200;
        let crew = crew();
        let (done, mut all_done) = mpsc::unbounded_channel();
        // A ring in which each member passes every token on to the next one.
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..MEMBERS).map(|_| mpsc::unbounded_channel::<usize>()).unzip();
        for (index, mut receiver) in receivers.into_iter().enumerate() {
            let next = senders[(index + 1) % MEMBERS].clone();
            let done = done.clone();
            crew.spawn(async move {
                while let Some(hops) = receiver.recv().await {
                    let sent = if hops == 0 { done.send(()) } else { Ok(()) };
                    if sent.is_err() || (hops > 0 && next.send(hops - 1).is_err()) {
                        return;
                    }
                }
            });
        }
        senders.iter().for_each(|sender| sender.send(ROUNDS).unwrap());
        for _ in 0..MEMBERS {
            timeout(Duration::from_secs(20), all_done.recv()).await.expect("a token was lost");
        }
    }

    #[tokio::test]
    async fn a_panic_ends_one_member_and_drops_it() {
        let (crew, dropped) = (crew(), Arc::new(AtomicUsize::new(0)));
        let guard = Dropped(Arc::clone(&dropped));
        crew.spawn(async move {
            let _guard = guard;
            tokio::task::yield_now().await;
            panic!("on purpose");
        });
        let (sender, receiver) = oneshot::channel();
        crew.spawn(async move {
            sleep(Duration::from_millis(10)).await;
            sender.send(()).unwrap();
        });
        receiver.await.unwrap();
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_crew_that_was_empty_starts_again() {
        let crew = crew();
        for _ in 0..3 {
            let (sender, receiver) = oneshot::channel();
            crew.spawn(async move { sender.send(()).unwrap() });
            receiver.await.unwrap();
            sleep(Duration::from_millis(5)).await;
            assert!(lock(&crew.shared.state).members.is_empty());
        }
    }

    #[test]
    fn members_are_dropped_with_the_runtime() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let crew = Crew::new(runtime.handle().clone(), 2);
        let dropped = Arc::new(AtomicUsize::new(0));
        for _ in 0..5 {
            let guard = Dropped(Arc::clone(&dropped));
            crew.spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
        }
        drop(runtime);
        assert_eq!(dropped.load(Ordering::SeqCst), 5);
        // Too late: dropped at once.
        let guard = Dropped(Arc::clone(&dropped));
        crew.spawn(async move { drop(guard) });
        assert_eq!(dropped.load(Ordering::SeqCst), 6);
    }
}
