//! The files of the Raft log, for a disk that may fill: a write that finds no room waits for it, so the log does not know
//! of it, and nothing is acknowledged meanwhile. Other errors are passed on, and end the process.

use crate::reserve::{Reserve, is_out_of_space};
use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

/// What waits for room, for people.
const WHAT: &str = "the Raft log";
/// How the names of files end that are written ahead.
const AHEAD: &str = ".reserved";

type PlainFile = <DefaultFileSystem as FileSystem>::Handle;
type PlainReader = <DefaultFileSystem as FileSystem>::Reader;
type PlainWriter = <DefaultFileSystem as FileSystem>::Writer;

/// The filesystem below the log.
pub(super) struct PatientFiles {
    reserve: Arc<Reserve>,
}

/// An open file.
pub(super) struct PatientFile {
    file: Arc<PlainFile>,
    /// It is written ahead: the log does without its space.
    is_ahead: bool,
}

/// Writes a file.
pub(super) struct PatientWriter {
    writer: PlainWriter,
    reserve: Arc<Reserve>,
    is_ahead: bool,
}

impl PatientFiles {
    pub(super) fn with(reserve: &Arc<Reserve>) -> Self {
        Self { reserve: reserve.clone() }
    }
}

impl FileSystem for PatientFiles {
    type Handle = PatientFile;
    type Reader = PlainReader;
    type Writer = PatientWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<PatientFile> {
        let is_ahead = path.as_ref().to_string_lossy().ends_with(AHEAD);
        let file = self.reserve.patiently(WHAT, || DefaultFileSystem.create(path.as_ref()))?;
        Ok(PatientFile { file: Arc::new(file), is_ahead })
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> io::Result<PatientFile> {
        Ok(PatientFile { file: Arc::new(DefaultFileSystem.open(path, permission)?), is_ahead: false })
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        self.reserve.patiently(WHAT, || DefaultFileSystem.rename(from.as_ref(), to.as_ref()))
    }

    fn new_reader(&self, handle: Arc<PatientFile>) -> io::Result<PlainReader> {
        DefaultFileSystem.new_reader(handle.file.clone())
    }

    fn new_writer(&self, handle: Arc<PatientFile>) -> io::Result<PatientWriter> {
        let writer = DefaultFileSystem.new_writer(handle.file.clone())?;
        Ok(PatientWriter { writer, reserve: self.reserve.clone(), is_ahead: handle.is_ahead })
    }
}

impl Handle for PatientFile {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        Handle::truncate(&*self.file, offset)
    }

    fn file_size(&self) -> io::Result<usize> {
        self.file.file_size()
    }

    /// A sync that fails is not tried again, whatever the reason: the kernel may have dropped the data.
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

impl PatientWriter {
    /// Writes ahead where there is plenty of room. Otherwise the file stays shorter, and the log takes its space later.
    fn write_ahead(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.reserve.is_short_of_space() {
            return Ok(bytes.len());
        }
        match self.writer.write(bytes) {
            Err(error) if is_out_of_space(&error) => {
                // What was written of it is of use to others.
                self.writer.truncate(0)?;
                Ok(bytes.len())
            }
            written => written,
        }
    }
}

impl Write for PatientWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_ahead {
            return self.write_ahead(bytes);
        }
        // A write that has failed has not moved the place where the next one begins.
        self.reserve.patiently(WHAT, || self.writer.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Seek for PatientWriter {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.writer.seek(to)
    }
}

impl WriteExt for PatientWriter {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        self.writer.truncate(offset)
    }

    /// Fails when there is no room; the engine then does without, and the write that follows waits.
    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        self.writer.allocate(offset, size)
    }
}
