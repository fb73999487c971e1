//! suture-participants-core
