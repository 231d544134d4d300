//! What became of a message after it was written: its texts, its reactions, and the votes in a poll.

use std::collections::BTreeMap;

use actix_web::HttpResponse;
use actix_web::web;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::domain::ids::MessageId;
use crate::http::{Caller, Path, Problem};
use crate::identity::scope::Scope;
use crate::messages::history::{self, Reaction, Version, Vote};

/// The texts of a message.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Versions {
    /// Oldest first; the last is the one it has.
    data: Vec<Version>,
}

/// The reactions to a message.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Reactions {
    /// One of each person at the most, the latest first.
    data: Vec<Reaction>,
}

/// The votes in a poll.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Votes {
    /// One of each person at the most, the latest first.
    data: Vec<Vote>,
    /// How many chose each option; those that nobody chose are absent.
    #[schema(example = json!({"Yes": 3, "No": 1}))]
    tally: BTreeMap<String, usize>,
}

/// Texts of a message
///
/// Every text that the message has had on WhatsApp, from the first to the one it has. A change that no webhook told of and that
/// was found by reading back is dated when it was found.
#[utoipa::path(get, path = "/v1/messages/{id}/edits", tag = "Messages", operation_id = "list_message_edits",
    params(("id" = MessageId, Path, description = "The message's id")),
    responses((status = 200, description = "The texts", body = Versions)))]
pub(in crate::http) async fn edits(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let parts = App::clone(&app);
    let data = app
        .detached(async move { parts.db.tenant(tenant, async |conn| history::versions(conn, id.0).await).await })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Ok().json(Versions { data }))
}

/// Reactions to a message
///
/// Those that count now: each person's latest, unless it was taken back.
#[utoipa::path(get, path = "/v1/messages/{id}/reactions", tag = "Messages", operation_id = "list_message_reactions",
    params(("id" = MessageId, Path, description = "The message's id")),
    responses((status = 200, description = "The reactions", body = Reactions)))]
pub(in crate::http) async fn reactions(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let parts = App::clone(&app);
    let data = app
        .detached(async move { parts.db.tenant(tenant, async |conn| history::reactions(conn, id.0).await).await })
        .await??
        .ok_or_else(Problem::not_found)?;
    Ok(HttpResponse::Ok().json(Reactions { data }))
}

/// Votes in a poll
///
/// Of a message that is no poll there are none.
#[utoipa::path(get, path = "/v1/messages/{id}/votes", tag = "Messages", operation_id = "list_poll_votes",
    params(("id" = MessageId, Path, description = "The poll's id")),
    responses((status = 200, description = "The votes", body = Votes)))]
pub(in crate::http) async fn votes(
    app: web::Data<App>,
    caller: Caller,
    id: Path<MessageId>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let parts = App::clone(&app);
    let data = app
        .detached(async move { parts.db.tenant(tenant, async |conn| history::votes(conn, id.0).await).await })
        .await??
        .ok_or_else(Problem::not_found)?;
    let mut tally = BTreeMap::new();
    for option in data.iter().flat_map(|vote| &vote.options) {
        *tally.entry(option.clone()).or_default() += 1;
    }
    Ok(HttpResponse::Ok().json(Votes { data, tally }))
}
