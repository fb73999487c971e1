//! Structured logs, on standard error. `RUST_LOG` chooses what is shown (`info` without it).
//!
//! Never shown is what PostgreSQL's driver logs: at debug level that is the parameters of every statement, and with them
//! patients' data.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How a log line is written.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl Format {
    /// As the command line writes it.
    pub fn as_arg(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Begins to log; `default` is the filter where `RUST_LOG` says nothing.
pub fn start(format: Format, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let harmless = filter_fn(|metadata| !metadata.target().starts_with("tokio_postgres"));
    match format {
        Format::Text => {
            lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).finish().with(harmless).init();
        }
        Format::Json => lines.json().finish().with(harmless).init(),
    }
}
