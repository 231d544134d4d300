//! `switchboard`: one binary, one file per subcommand.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line speaks to its user")]

mod admin;
mod bench;
mod demo;
mod doctor;
mod migrate;
mod openapi;
mod serve;
mod simulate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A multi-tenant WhatsApp gateway: what the API accepted reaches WhatsApp once, in order, at a safe pace.
#[derive(Parser)]
#[command(version, about, after_help = "Settings come from the environment; README.md lists them.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway, or some of its roles
    Serve(serve::Arguments),
    /// Bring the database's schema up to date, or take migrations back
    Migrate(migrate::Arguments),
    /// Keys, tenants and the master key, for whoever has the database
    #[command(subcommand)]
    Admin(admin::Command),
    /// Print the OpenAPI document
    Openapi(openapi::Arguments),
    /// Run a WAHA server that needs no phone
    Simulate(simulate::Arguments),
    /// Look at everything the gateway depends on, and say what to do about each fault
    Doctor(doctor::Arguments),
    /// Measure, side by side with the database's own benchmark
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(fault) => {
            eprintln!("switchboard: no runtime: {fault}");
            return ExitCode::FAILURE;
        }
    };
    // Two providers in one process would make TLS panic at its first use; this one is installed before any.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    let result = runtime.block_on(async {
        match arguments.command {
            Command::Serve(arguments) => serve::run(arguments).await,
            Command::Migrate(arguments) => migrate::run(arguments).await,
            Command::Admin(command) => admin::run(command).await,
            Command::Openapi(arguments) => openapi::run(&arguments),
            Command::Simulate(arguments) => simulate::run(arguments).await,
            Command::Doctor(arguments) => doctor::run(arguments).await,
            Command::Bench(arguments) => bench::run(arguments).await,
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            for line in format!("{fault:#}").lines() {
                eprintln!("switchboard: {line}");
            }
            ExitCode::FAILURE
        }
    }
}
