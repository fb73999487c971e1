//! The one place of this crate that draws random bytes: secrets and names, never decisions.

/// Random bytes of the operating system.
#[expect(clippy::disallowed_methods, reason = "the shell's randomness: the cores have none")]
pub fn bytes<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    Ok(bytes)
}
