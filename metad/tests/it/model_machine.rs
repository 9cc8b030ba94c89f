//! Tests of the metadata state machine, alone and on its store, against simple models of what it promises.

mod conflicts;
mod cuts;
mod damage;
mod duplicates;
mod endings;
mod model;
mod plain;
mod replicas;
mod tables;
mod world;
