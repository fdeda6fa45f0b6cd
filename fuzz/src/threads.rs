//! Pools of rayon of different sizes.

use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::LazyLock;

static ONE: LazyLock<ThreadPool> = LazyLock::new(|| pool(1));
static THREE: LazyLock<ThreadPool> = LazyLock::new(|| pool(3));

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("a machine can start threads")
}

/// Calls `f` where rows are spread over one thread, or over three.
pub fn with_threads<R: Send>(three: bool, f: impl FnOnce() -> R + Send) -> R {
    if three { THREE.install(f) } else { ONE.install(f) }
}
