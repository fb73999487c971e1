//! suture-topics
