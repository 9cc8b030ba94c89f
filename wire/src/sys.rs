//! System calls that the standard library does not offer.

use std::os::fd::AsRawFd;
use std::time::Duration;

/// Time since the machine was started, by a clock that goes on while it sleeps (`CLOCK_BOOTTIME`, `clock_gettime(2)`):
/// [`std::time::Instant`] does not.
#[must_use]
pub fn since_boot() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that outlives the call. The clock is there since Linux 2.6.39, so the call
    // cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Asks for socket buffers beyond the system's limit; does nothing without the right to.
pub(crate) fn force_buffers(socket: &impl AsRawFd, bytes: usize) {
    let size = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // SAFETY: the descriptor is open, and the option's value is one int that outlives the call. A failure (no
        // CAP_NET_ADMIN) leaves the buffers as they were.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_the_machine_goes_on() {
        let before = since_boot();
        std::thread::sleep(Duration::from_millis(5));
        assert!(since_boot() - before >= Duration::from_millis(5) && before > Duration::ZERO);
    }
}
