//! Stories as text, one file each (`*.txt` beside this file), and random interleavings of the same pieces.

mod figures;
mod interleavings;
mod script;
mod world;
