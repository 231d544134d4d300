//! Idempotency of creating requests: the first answer is kept in the transaction of the change it answers.
//!
//! Guarantee: of any number of requests with the same key, at the same time or one after the other, on any node, one takes
//! effect; the others get its answer, or 409 while it still runs. A request that fails keeps nothing.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header;
use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Binary, Bool, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::params::IdempotencyKey;
use super::problem::{Code, Problem};
use crate::app::App;
use crate::db::{DbError, Prepare, SystemConn, TenantConn, Work, sql};
use crate::domain::ids::TenantId;
use crate::identity::rotate::SealedColumn;

/// How long an answer is kept, in hours.
const KEEP_HOURS: i64 = 24;

/// What makes two requests the same.
#[derive(Clone, Debug)]
pub struct Once {
    /// What is done, such as `tenants.create`; part of the key's scope.
    pub operation: &'static str,
    /// The caller's key; without one the request is simply done.
    pub key: Option<IdempotencyKey>,
    /// What the request asks for: [`super::Body::fingerprint`].
    pub fingerprint: [u8; 32],
    /// Whether the answer shows a secret and is kept sealed.
    pub secret: bool,
}

/// The answer to a creating request.
#[derive(Debug)]
pub struct Created {
    /// Its status.
    pub status: StatusCode,
    /// What was created.
    pub id: Uuid,
    /// Its body: JSON.
    pub body: Vec<u8>,
    /// Whether it is the first answer, given again.
    pub replayed: bool,
}

impl Created {
    /// The first answer.
    ///
    /// # Errors
    /// When `body` has no JSON form.
    pub fn new(status: StatusCode, id: Uuid, body: &impl Serialize) -> Result<Self, Problem> {
        let body = serde_json::to_vec(body).map_err(|fault| {
            tracing::error!(%fault, "an answer has no JSON form");
            Problem::new(Code::Internal, "The request failed; its id finds it in the log")
        })?;
        Ok(Self { status, id, body, replayed: false })
    }

    /// The answer as it is sent; `collection` is the path of the list that the new resource belongs to.
    #[must_use]
    pub fn response(self, collection: &str) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        response.content_type("application/json");
        response.insert_header((header::LOCATION, format!("{collection}/{}", self.id)));
        if self.replayed {
            response.insert_header(("Idempotency-Replayed", "true"));
        }
        response.body(self.body)
    }
}

/// Does `work` once, in a transaction that sees only `tenant`'s rows.
///
/// # Errors
/// Those of `work`; 422 when the key was used for something else; 409 while the first request still runs.
pub async fn once_tenant<F>(app: &App, tenant: TenantId, once: Once, work: F) -> Result<Created, Problem>
where
    F: for<'r> AsyncFnOnce(&'r mut TenantConn) -> Result<Created, Problem> + Send + 'static,
    for<'r> F: Work<&'r mut TenantConn, Result<Created, Problem>, Fut: Send>,
{
    let parts = app.clone();
    app.detached(async move {
        let app = &parts;
        parts
            .db
            .tenant(tenant, async move |conn| {
                if let Some(first) = first_answer(app, conn, tenant.0, &once).await? {
                    return Ok(first);
                }
                let created = work(conn).await?;
                keep(app, conn, tenant.0, &once, &created).await?;
                Ok(created)
            })
            .await
    })
    .await?
}

/// Does `work` once, in a transaction above tenants. `scope` is the tenant whose key it is, `None` for the platform's own.
///
/// # Errors
/// As [`once_tenant`].
pub async fn once_system<F>(app: &App, scope: Option<TenantId>, once: Once, work: F) -> Result<Created, Problem>
where
    F: for<'r> AsyncFnOnce(&'r mut SystemConn) -> Result<Created, Problem> + Send + 'static,
    for<'r> F: Work<&'r mut SystemConn, Result<Created, Problem>, Fut: Send>,
{
    let parts = app.clone();
    let scope = scope.map_or(Uuid::nil(), |tenant| tenant.0);
    app.detached(async move {
        let app = &parts;
        parts
            .db
            .system(async move |conn| {
                if let Some(first) = first_answer(app, conn, scope, &once).await? {
                    return Ok(first);
                }
                let created = work(conn).await?;
                keep(app, conn, scope, &once, &created).await?;
                Ok(created)
            })
            .await
    })
    .await?
}

#[derive(QueryableByName)]
struct Kept {
    #[diesel(sql_type = Binary)]
    fingerprint: Vec<u8>,
    #[diesel(sql_type = SqlUuid)]
    resource_id: Uuid,
    #[diesel(sql_type = SmallInt)]
    status_code: i16,
    #[diesel(sql_type = Binary)]
    response: Vec<u8>,
    #[diesel(sql_type = Bool)]
    sealed: bool,
    #[diesel(sql_type = Timestamptz)]
    expires_at: DateTime<Utc>,
}

/// Answers that show a secret. An answer is kept for a day, but within it another master key must not make it unreadable.
pub const SEALED_ANSWERS: SealedColumn = SealedColumn {
    name: "idempotency_keys.response",
    purpose: "idempotency_keys",
    stale: "SELECT concat_ws(':', tenant_id, operation, key) AS place, response AS sealed FROM idempotency_keys \
            WHERE sealed AND substring(response FROM 1 FOR octet_length($1::bytea)) <> $1 \
              AND concat_ws(':', tenant_id, operation, key) <> ALL($2) LIMIT $3",
    replace: "WITH locked AS ( \
                  SELECT t.tenant_id, t.operation, t.key, n.new FROM unnest($1, $2, $3) AS n (place, old, new) \
                  JOIN idempotency_keys t ON concat_ws(':', t.tenant_id, t.operation, t.key) = n.place \
                  WHERE t.sealed AND t.response = n.old \
                  ORDER BY t.tenant_id, t.operation, t.key FOR NO KEY UPDATE OF t) \
              UPDATE idempotency_keys t SET response = l.new FROM locked l \
              WHERE t.tenant_id = l.tenant_id AND t.operation = l.operation AND t.key = l.key",
};

fn purpose(scope: Uuid, once: &Once, key: &str) -> String {
    SEALED_ANSWERS.purpose_at(&format!("{scope}:{}:{key}", once.operation))
}

/// Takes the key for this transaction; answers the first answer, if there was one.
async fn first_answer(
    app: &App,
    conn: &mut AsyncPgConnection,
    scope: Uuid,
    once: &Once,
) -> Result<Option<Created>, Problem> {
    let Some(IdempotencyKey(key)) = &once.key else { return Ok(None) };
    let purpose = purpose(scope, once, key);
    let digest = Sha256::digest(purpose.as_bytes());
    let lock = i64::from_be_bytes(digest.first_chunk().copied().unwrap_or_default());
    // The lock comes before the work, so that the second of two equal requests waits here, and not in a constraint that
    // its twin is about to satisfy. A number is all that is formatted into the text.
    let taking =
        format!("SET LOCAL lock_timeout = '2s'; SELECT pg_advisory_xact_lock({lock}); SET LOCAL lock_timeout = '10s'");
    conn.batch_execute(&taking).await.map_err(|fault| match DbError::from(fault) {
        DbError::Contended(_) => Problem::new(Code::RequestInProgress, "Ask again in a moment, with the same key"),
        fault => fault.into(),
    })?;
    let text = "SELECT fingerprint, resource_id, status_code, response, sealed, expires_at \
                FROM idempotency_keys WHERE tenant_id = $1 AND operation = $2 AND key = $3";
    let kept: Vec<Kept> = sql(text)
        .bind::<SqlUuid, _>(scope)
        .bind::<Text, _>(once.operation)
        .bind::<Text, _>(key)
        .prepared()
        .load(conn)
        .await?;
    let Some(kept) = kept.into_iter().next() else { return Ok(None) };
    if kept.expires_at <= app.clock.now() {
        let text = "DELETE FROM idempotency_keys WHERE tenant_id = $1 AND operation = $2 AND key = $3";
        let delete = sql(text).bind::<SqlUuid, _>(scope).bind::<Text, _>(once.operation).bind::<Text, _>(key);
        delete.prepared().execute(conn).await?;
        return Ok(None);
    }
    if kept.fingerprint != once.fingerprint {
        return Err(Problem::new(Code::IdempotencyKeyReused, "This Idempotency-Key came with another body before"));
    }
    let body = if kept.sealed {
        app.sealer.open(&purpose, &kept.response).map_err(|fault| {
            tracing::error!(%fault, "a kept answer does not open");
            Problem::new(Code::Internal, "The first answer cannot be given again")
        })?
    } else {
        kept.response
    };
    let status = u16::try_from(kept.status_code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    Ok(Some(Created { status: status.unwrap_or(StatusCode::OK), id: kept.resource_id, body, replayed: true }))
}

async fn keep(
    app: &App,
    conn: &mut AsyncPgConnection,
    scope: Uuid,
    once: &Once,
    created: &Created,
) -> Result<(), Problem> {
    let Some(IdempotencyKey(key)) = &once.key else { return Ok(()) };
    let now = app.clock.now();
    let response =
        if once.secret { app.sealer.seal(&purpose(scope, once, key), &created.body) } else { created.body.clone() };
    let text = "INSERT INTO idempotency_keys \
                (tenant_id, operation, key, fingerprint, resource_id, status_code, response, sealed, created_at, expires_at) \
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    sql(text)
        .bind::<SqlUuid, _>(scope)
        .bind::<Text, _>(once.operation)
        .bind::<Text, _>(key)
        .bind::<Binary, _>(&once.fingerprint[..])
        .bind::<SqlUuid, _>(created.id)
        .bind::<SmallInt, _>(i16::try_from(created.status.as_u16()).unwrap_or(200))
        .bind::<Binary, _>(response)
        .bind::<Bool, _>(once.secret)
        .bind::<Timestamptz, _>(now)
        .bind::<Timestamptz, _>(now + TimeDelta::hours(KEEP_HOURS))
        .prepared()
        .execute(conn)
        .await?;
    Ok(())
}
