//! What must not be in the product.

/// They are there only for the tests that ask for them, and those do not build `suture`.
#[test]
fn fail_points_are_compiled_out() {
    let binary = std::fs::read(env!("CARGO_BIN_EXE_suture")).unwrap();
    let mark = suture_participants::points::MARK.as_bytes();
    assert!(!binary.windows(mark.len()).any(|window| window == mark));
}
