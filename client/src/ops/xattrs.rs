//! Extended attributes.

use crate::Client;
use crate::error::unexpected_reply;
use wire::FsError;
use wire::ids::Ino;
use wire::op::{Name, Op, Read, ReadReply, XattrMode};

impl Client {
    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    /// As `getxattr(2)`.
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        self.order.wait_if_new(ino).await?;
        self.ask_bytes(Read::GetXattr { ino, name: name.to_vec() }).await
    }

    /// Returns the names of the extended attributes.
    ///
    /// # Errors
    /// As `listxattr(2)`.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<Name>, FsError> {
        self.order.wait_if_new(ino).await?;
        match self.session.read(Read::ListXattr { ino }).await? {
            ReadReply::Names(names) => Ok(names),
            _ => Err(unexpected_reply()),
        }
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// As `setxattr(2)`.
    pub async fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        clear_sgid: bool,
    ) -> Result<(), FsError> {
        let op = Op::SetXattr { ino, name: name.to_vec(), value: value.to_vec(), mode, clear_sgid };
        // Noted before it is set: once it is there, no answer may deny it.
        if let Some(file) = self.open_files.get(ino) {
            file.note_xattrs();
        }
        self.at_once(op).await?;
        // An answer from before may have cleared the note meanwhile.
        if let Some(file) = self.open_files.get(ino) {
            file.note_xattrs();
        }
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// As `removexattr(2)`.
    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        self.at_once(Op::RemoveXattr { ino, name: name.to_vec() }).await.map(|_| ())
    }
}
