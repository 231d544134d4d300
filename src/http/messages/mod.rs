//! `/v1/messages`: send, list, look at one and at its history, cancel, retry, delete; and what can be done
//! with one that was sent.

mod actions;
mod batch;
mod content;
mod history;
mod list;
mod media;
mod prepare;
mod request;
mod send;
mod steps;

use actix_web::web::{self, ServiceConfig};
use utoipa::OpenApi;

use crate::messages::view::Message;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/messages").route(web::post().to(send::send)).route(web::get().to(list::list)))
        .service(web::resource("/messages/batch").route(web::post().to(batch::send_batch)))
        .service(web::resource("/messages/cancel").route(web::post().to(steps::cancel_many)))
        .service(web::resource("/messages/retry").route(web::post().to(steps::retry_many)))
        .service(
            web::resource("/messages/{id}")
                .route(web::get().to(list::one))
                .route(web::patch().to(actions::edit))
                .route(web::delete().to(steps::delete)),
        )
        .service(web::resource("/messages/{id}/reaction").route(web::put().to(actions::react)))
        .service(web::resource("/messages/{id}/forward").route(web::post().to(actions::forward)))
        .service(web::resource("/messages/{id}/seen").route(web::post().to(actions::seen)))
        .configure(media::routes)
        .service(web::resource("/messages/{id}/transitions").route(web::get().to(list::transitions)))
        .service(web::resource("/messages/{id}/edits").route(web::get().to(history::edits)))
        .service(web::resource("/messages/{id}/reactions").route(web::get().to(history::reactions)))
        .service(web::resource("/messages/{id}/votes").route(web::get().to(history::votes)))
        .service(web::resource("/messages/{id}/cancel").route(web::post().to(steps::cancel)))
        .service(web::resource("/messages/{id}/retry").route(web::post().to(steps::retry)));
}

/// The operations of these files, described.
#[derive(OpenApi)]
#[openapi(
    paths(
        send::send,
        batch::send_batch,
        list::list,
        list::one,
        list::transitions,
        history::edits,
        history::reactions,
        history::votes,
        steps::cancel,
        steps::cancel_many,
        steps::retry,
        steps::retry_many,
        steps::delete,
        actions::edit,
        actions::react,
        actions::forward,
        actions::seen,
        media::content,
        media::link,
        media::retry,
    ),
    components(schemas(Message<'_>)),
)]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}
