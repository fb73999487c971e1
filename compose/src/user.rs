//! Who is at the terminal.

use anyhow::Context;

/// His name, also behind `sudo`.
pub fn name() -> anyhow::Result<String> {
    if let Some(name) = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty()) {
        return Ok(name);
    }
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    Ok(user.context("this user has no name: say who asks with --who NAME")?.name)
}
