//! All-gather with a limit to the time it waits.
//!
//! The only module with `unsafe`: an exchange that is given up goes on in the background, so its buffers have to
//! outlive it. They are leaked then, and freed otherwise.
#![allow(unsafe_code)]

use mpi::request::StaticScope;
use mpi::traits::{Communicator, CommunicatorCollectives as _};
use std::time::{Duration, Instant};

/// What all ranks sent, in the order of ranks: as many bytes of each. `None` if that takes longer than `timeout`.
pub(crate) fn all_gather<C: Communicator>(
    comm: &C,
    mine: Vec<u8>,
    timeout: Duration,
) -> Option<Vec<u8>> {
    let ranks = comm.size() as usize;
    let to = Box::into_raw(vec![0u8; mine.len() * ranks].into_boxed_slice());
    let from = Box::into_raw(mine.into_boxed_slice());
    // SAFETY: both were just made of boxes, and nothing else refers to them until the request is done; unless it is,
    // they are never freed.
    let (send, receive): (&'static [u8], &'static mut [u8]) = unsafe { (&*from, &mut *to) };
    let start = Instant::now();
    let mut request = comm.immediate_all_gather_into(StaticScope, send, receive);
    loop {
        match request.test() {
            Ok(_) => break,
            Err(pending) => request = pending,
        }
        if start.elapsed() > timeout {
            // Its destructor would panic.
            std::mem::forget(request);
            return None;
        }
        // Ranks may be more than cores.
        std::thread::yield_now();
    }
    // SAFETY: the request is done, MPI has no further use for the buffers, and the references to them are not used any
    // more. They came from boxes of these types.
    unsafe {
        drop(Box::from_raw(from));
        Some(Box::from_raw(to).into_vec())
    }
}
