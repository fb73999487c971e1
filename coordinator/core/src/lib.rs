//! suture-coordinator-core
