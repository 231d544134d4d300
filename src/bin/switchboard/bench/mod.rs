//! `switchboard bench`: what the gateway does in a second, beside what the same database does with one insert per commit.
//!
//! Machines differ, and the same machine differs from minute to minute; so both sides run in one go, in turns, and the ratio
//! is what counts. Gateway, simulated WAHA servers and load are processes of their own; everything goes over HTTP, with all
//! that a tenant's request and a WAHA server's webhook go through. Each part has a database and queues of its own and removes
//! them in the end.

mod accept;
mod fleet;
mod idle;
mod keep;
mod ingest;
mod load;
mod paced;
mod rig;
mod stored;
mod usage;
mod way;

use std::time::Duration;

use switchboard::config::Config;

use self::usage::Used;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to measure: a comma-separated choice of accept, way, ingest, paced, idle, keep, stored
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// A short run of everything, to see that it works; its figures say little
    #[arg(long)]
    quick: bool,
    /// Also the cost with 10 million stored messages, which takes long and about 10 GB of disk
    #[arg(long)]
    full: bool,
    /// Seconds of each run that has no end by itself
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Connections at once, on either side
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How often the two sides take turns
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Messages that go the whole way
    #[arg(long, default_value_t = 20_000)]
    messages: usize,
    /// How many times faster than WhatsApp acknowledgements come, in the whole way
    #[arg(long, default_value_t = 10.0)]
    time_scale: f64,
    /// A process for each role of the gateway in the whole way, which shows what each of them costs
    #[arg(long)]
    split: bool,
    /// Seconds between two messages of each of the 10,000 paced sessions; 10 makes 1,000 messages a second in sum
    #[arg(long, default_value_t = 10)]
    gap: u32,
    /// Stored messages for `stored`
    #[arg(long, default_value_t = 10_000_000)]
    stored: u32,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Accept,
    Way,
    Ingest,
    Paced,
    Idle,
    Keep,
    Stored,
}

/// A line of the summary.
struct Finding {
    what: &'static str,
    measured: String,
    goal: &'static str,
    met: bool,
}

pub async fn run(mut arguments: Arguments) -> anyhow::Result<()> {
    let config = Config::load()?;
    if arguments.quick {
        arguments.seconds = arguments.seconds.min(2);
        arguments.turns = 1;
        arguments.messages = arguments.messages.min(2_000);
        arguments.stored = arguments.stored.min(100_000);
    }
    let wanted = |part: Part| match arguments.only.as_slice() {
        [] => part != Part::Stored || arguments.full,
        only => only.contains(&part),
    };
    let mut findings = Vec::new();
    if wanted(Part::Idle) {
        findings.push(idle::run(&config).await?);
    }
    if wanted(Part::Keep) {
        keep::run(&config, &arguments).await?;
    }
    if wanted(Part::Accept) {
        findings.extend(accept::run(&config, &arguments).await?);
    }
    if wanted(Part::Ingest) {
        findings.extend(ingest::run(&config, &arguments).await?);
    }
    if wanted(Part::Way) {
        findings.push(way::run(&config, &arguments).await?);
    }
    if wanted(Part::Paced) {
        findings.extend(paced::run(&config, &arguments).await?);
    }
    if wanted(Part::Stored) {
        findings.extend(stored::run(&config, &arguments).await?);
    }
    println!("\n| what | measured | goal | |\n|---|---|---|---|");
    for Finding { what, measured, goal, met } in findings {
        println!("| {what} | {measured} | {goal} | {} |", if met { "met" } else { "missed" });
    }
    Ok(())
}

/// Prints the processor time by process, in microseconds a message; answers all but the load's.
fn print_used(used: &Used, messages: f64) -> f64 {
    let micros = |used: &Duration| used.as_secs_f64() * 1e6 / messages.max(1.0);
    let each: Vec<String> = used.iter().map(|(name, used)| format!("{name} {:.0}", micros(used))).collect();
    let all: f64 = used.iter().filter(|(name, _)| name != "load").map(|(_, used)| micros(used)).sum();
    println!("      µs of processor a message: {}; all but the load {all:.0}", each.join(", "));
    all
}

/// The one in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
