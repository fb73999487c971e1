//! suture-coordinator
