//! suture-participants
