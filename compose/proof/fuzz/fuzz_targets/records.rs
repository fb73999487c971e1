//! See `suture_fuzz::records`.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| drop(suture_fuzz::records::check(input)));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    suture_fuzz::not_built_for_it()
}
