//! openraft's own suite for storages, on ours.

use super::log::Log;
use super::machine::Machine;
use super::types::TypeConfig;
use crate::store::Store;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use std::sync::Arc;
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, Log, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("state"), 8 << 20).unwrap());
        let log = Log::open(&dir.path().join("log")).unwrap();
        let machine = Machine::open(dir.path(), store).unwrap();
        Ok((dir, log, machine))
    }
}

#[test]
fn log_and_state_machine_pass_openrafts_storage_suite() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}
