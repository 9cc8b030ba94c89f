//! System calls that the standard library does not offer.

use std::os::fd::AsRawFd;

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
