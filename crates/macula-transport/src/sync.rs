//! One way to lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks. A panic of another holder is no reason to panic here: every critical section in this
/// crate leaves its data whole at each step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
