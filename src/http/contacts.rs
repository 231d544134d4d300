//! `/v1/contacts`: the people a tenant is in touch with.

use actix_web::HttpResponse;
use actix_web::web::{self, ServiceConfig};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi, ToSchema};

use super::{
    Body, Caller, Cursor, IfMatch, IfMatchHeader, List, Page, Path, Problem, ProblemBody, Query, Rules, nullable,
    versioned,
};
use crate::app::App;
use crate::contacts::queries::{self, Change, Filter};
use crate::contacts::view::{Contact, ContactDetails};
use crate::contacts::{self, MergeDenied, UndoDenied};
use crate::db::{SystemConn, TenantConn};
use crate::domain::ids::{ContactId, ContactMergeId, TenantId};
use crate::domain::person;
use crate::domain::recipient::ChatId;
use crate::identity::scope::Scope;

const MOST_TAGS: usize = 50;
const LONGEST_TAG: usize = 50;
const LONGEST_NAME: usize = 255;
const LONGEST_NOTES: usize = 5000;

pub(super) fn routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/contacts").route(web::get().to(list)))
        .service(web::resource("/contacts/{id}").route(web::get().to(get)).route(web::patch().to(patch)))
        .service(web::resource("/contacts/{id}/merge").route(web::post().to(merge)))
        .service(web::resource("/contacts/{id}/merges/{merge_id}/undo").route(web::post().to(undo)));
}

#[derive(OpenApi)]
#[openapi(paths(list, get, patch, merge, undo))]
struct Api;

pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    Api::openapi()
}

/// Which contacts to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListContacts {
    /// The one with this number, in E.164, or WhatsApp id.
    #[param(example = "+15550100001")]
    phone: Option<String>,
    /// With this tag.
    tag: Option<String>,
    /// With a name, yours or their own, that begins so, in whatever case.
    q: Option<String>,
    /// How many at most: 1 to 200, default 50.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
    /// Where to go on: `next_cursor` of the page before.
    cursor: Option<String>,
}

/// List contacts
///
/// Newest first. A contact comes into being with the first message that comes from or goes to a person, or that they write in a group.
#[utoipa::path(get, path = "/v1/contacts", tag = "Contacts", operation_id = "list_contacts", params(ListContacts),
    responses((status = 200, description = "A page of contacts", body = List<Contact>)))]
async fn list(app: web::Data<App>, caller: Caller, query: Query<ListContacts>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    let ListContacts { phone, tag, q, limit, cursor } = query.0;
    let page = Page::new(limit, cursor.as_deref())?;
    let key =
        match phone {
            None => None,
            Some(phone) => {
                let invalid = |message: String| Problem::invalid("phone", "invalid_value", message);
                let chat = ChatId::parse(&phone).map_err(|fault| invalid(fault.to_string()))?;
                let key = person::key(chat.as_str());
                Some(key.ok_or_else(|| {
                    invalid("must be a phone number in E.164 form or a person's WhatsApp id".to_owned())
                })?)
            }
        };
    let filter = Filter { key, tag, prefix: q.filter(|q| !q.is_empty()) };
    let parts = App::clone(&app);
    let rows = app
        .detached(async move {
            let after = page.after.map(|after| (after.at, after.id));
            parts
                .db
                .tenant(tenant, async move |conn: &mut TenantConn| {
                    queries::list(conn, &filter, after, page.fetch()).await
                })
                .await
        })
        .await??;
    Ok(HttpResponse::Ok().json(page.answer(rows, |row| Cursor { at: row.created_at, id: row.id.0 })))
}

/// Look at a contact
///
/// With all ids they go by, where they are reached, and the contacts that turned out to be them. The id of one of those answers this
/// contact.
#[utoipa::path(get, path = "/v1/contacts/{id}", tag = "Contacts", operation_id = "get_contact",
    params(("id" = ContactId, Path, description = "The contact")),
    responses((status = 200, description = "The contact", body = ContactDetails)))]
async fn get(app: web::Data<App>, caller: Caller, id: Path<ContactId>) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesRead)?;
    show(&app, tenant, id.0).await
}

async fn show(app: &App, tenant: TenantId, id: ContactId) -> Result<HttpResponse, Problem> {
    let parts = app.clone();
    let found = app
        .detached(async move {
            parts.db.tenant(tenant, async move |conn: &mut TenantConn| queries::find(conn, id).await).await
        })
        .await??;
    let details = found.ok_or_else(Problem::not_found)?;
    Ok(versioned(&details, details.contact.version))
}

/// What is to change of a contact; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "Ana Silva", "tags": ["vip"], "notes": "Prefers mornings"}))]
struct ContactPatch {
    /// Your name for them, 1 to 255 characters; null: none.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 255)]
    name: Option<Option<String>>,
    /// In place of the old ones: at most 50 of 1 to 50 characters each.
    #[schema(max_items = 50)]
    tags: Option<Vec<String>>,
    /// In place of the old ones: at most 5000 characters; null: none.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, max_length = 5000)]
    notes: Option<Option<String>>,
}

impl ContactPatch {
    fn check(self) -> Result<Change, Problem> {
        let Self { name, tags, notes } = self;
        let mut rules = Rules::new();
        if let Some(Some(name)) = &name {
            rules.name("name", name, LONGEST_NAME);
        }
        if let Some(Some(notes)) = &notes {
            rules.text("notes", notes, LONGEST_NOTES);
        }
        let tags = tags.map(|mut tags| {
            rules.check(tags.len() <= MOST_TAGS, "tags", "too_long", "must have at most 50 tags");
            for (place, tag) in tags.iter().enumerate().take(MOST_TAGS) {
                rules.name(&format!("tags[{place}]"), tag, LONGEST_TAG);
            }
            tags.sort_unstable();
            tags.dedup();
            tags
        });
        rules.finish()?;
        Ok(Change { name, tags, notes })
    }
}

/// Change a contact
///
/// Your name for them, tags and notes. What WhatsApp says of them stays.
#[utoipa::path(patch, path = "/v1/contacts/{id}", tag = "Contacts", operation_id = "update_contact",
    params(("id" = ContactId, Path, description = "The contact"), IfMatchHeader), request_body = ContactPatch,
    responses((status = 200, description = "The contact as it is now", body = ContactDetails)))]
async fn patch(
    app: web::Data<App>,
    caller: Caller,
    id: Path<ContactId>,
    if_match: IfMatch,
    body: Body<ContactPatch>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let change = body.into_inner().check()?;
    let (parts, now, id) = (App::clone(&app), app.clock.now(), id.0);
    let details = app
        .detached(async move {
            parts
                .db
                .tenant(tenant, async move |conn: &mut TenantConn| {
                    contacts::lock(conn, tenant).await?;
                    let found = queries::find(conn, id).await?.ok_or_else(Problem::not_found)?;
                    if_match.check(found.contact.version)?;
                    queries::change(conn, now, found.contact.id, &change).await?;
                    queries::find(conn, found.contact.id).await?.ok_or_else(Problem::not_found)
                })
                .await
        })
        .await??;
    Ok(versioned(&details, details.contact.version))
}

/// Who else it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"contact_id": "01994f3e-6d4f-7cc3-98d5-8f1c1f0a2b3c"}))]
struct MergeContact {
    /// The contact that is the same person; it becomes a part of this one.
    contact_id: ContactId,
}

/// Merge two contacts
///
/// Says that another contact is the same person: its ids and conversations become this contact's, tags are united, notes joined, and
/// this contact's name stays. A repeat changes nothing. It can be undone.
#[utoipa::path(post, path = "/v1/contacts/{id}/merge", tag = "Contacts", operation_id = "merge_contacts",
    params(("id" = ContactId, Path, description = "The contact that stays")), request_body = MergeContact,
    responses((status = 200, description = "The contact that both are now", body = ContactDetails),
              (status = 422, description = "There is no contact `contact_id`", body = ProblemBody<'_>, content_type = "application/problem+json")))]
async fn merge(
    app: web::Data<App>,
    caller: Caller,
    id: Path<ContactId>,
    body: Body<MergeContact>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let (parts, now, id, other) = (App::clone(&app), app.clock.now(), id.0, body.into_inner().contact_id);
    let kept = app
        .detached(async move {
            let chance = parts.chance.clone();
            parts
                .db
                .system(async move |conn: &mut SystemConn| {
                    contacts::merge_by_tenant(conn, &chance, now, tenant, id, other).await
                })
                .await
        })
        .await??;
    show(&app, tenant, kept).await
}

/// Undo a merge
///
/// Makes a contact that was merged into this one a person of its own again, with its own ids, name, tags, notes and conversations.
/// What you changed since then stays with this contact, and so do reactions and votes. WhatsApp's word does not merge the two again;
/// you may. A repeat changes nothing.
#[utoipa::path(post, path = "/v1/contacts/{id}/merges/{merge_id}/undo", tag = "Contacts", operation_id = "undo_contact_merge",
    params(("id" = ContactId, Path, description = "The contact that was kept"),
           ("merge_id" = ContactMergeId, Path, description = "The merge, from the contact's `merges`")),
    responses((status = 200, description = "The contact that is a person of its own again", body = ContactDetails),
              (status = 409, description = "It cannot be undone; `detail` says why", body = ProblemBody<'_>, content_type = "application/problem+json")))]
async fn undo(
    app: web::Data<App>,
    caller: Caller,
    path: Path<(ContactId, ContactMergeId)>,
) -> Result<HttpResponse, Problem> {
    let tenant = caller.tenant(Scope::MessagesWrite)?;
    let (parts, now, (id, merge)) = (App::clone(&app), app.clock.now(), path.0);
    let restored = app
        .detached(async move {
            let chance = parts.chance.clone();
            parts
                .db
                .system(async move |conn: &mut SystemConn| contacts::undo(conn, &chance, now, tenant, id, merge).await)
                .await
        })
        .await??;
    show(&app, tenant, restored).await
}

impl From<MergeDenied> for Problem {
    fn from(denied: MergeDenied) -> Self {
        match denied {
            MergeDenied::NotFound => Self::not_found(),
            MergeDenied::OtherNotFound => Self::invalid("contact_id", "not_found", "there is no such contact"),
            MergeDenied::Database(fault) => fault.into(),
        }
    }
}

impl From<UndoDenied> for Problem {
    fn from(denied: UndoDenied) -> Self {
        match denied {
            UndoDenied::NotFound => Self::not_found(),
            UndoDenied::NotNow(why) => Self::conflict(why),
            UndoDenied::Database(fault) => fault.into(),
        }
    }
}
