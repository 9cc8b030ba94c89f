//! Where the programs write their logs.

use std::fs::File;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;
pub use tracing_subscriber::filter::ParseError;

/// Sends what this filter lets through to a file, or to standard error. What cannot be written, because the disk is full
/// or the terminal is gone, is dropped: a program whose log is full goes on with its work.
///
/// # Errors
/// When the filter is not valid.
///
/// # Panics
/// When the process logs already.
pub fn start(filter: &str, file: Option<File>) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    // tracing-subscriber would print an error of the log to standard error, and panic when that fails, too.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).log_internal_errors(false);
    match file {
        Some(file) => log.with_writer(Mutex::new(file)).init(),
        None => log.with_writer(std::io::stderr).init(),
    }
    Ok(())
}

/// Checks a filter without using it.
///
/// # Errors
/// When the filter is not valid.
pub fn check(filter: &str) -> Result<(), ParseError> {
    EnvFilter::try_new(filter).map(drop)
}
