//! What an embedded cluster is made of.

/// Shape of an embedded cluster. It is fixed by the first start in a directory.
#[derive(Clone, Debug)]
pub struct EmbedOptions {
    /// Metadata daemons: 1, 3 or 5.
    pub metads: u8,
    /// Block daemons, at least 1.
    pub blockds: u8,
    /// Replicas of each block, 1 to 5, at most as many as block daemons. Takes effect at the first start.
    pub replicas: u8,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self { metads: 1, blockds: 1, replicas: 1 }
    }
}
