//! Who calls. Every request below `/v1` must show valid credentials before anything else of it is read; a handler gets its
//! tenant only by asking [`Caller::tenant`] for a scope, so a route that forgets to ask can reach nobody's rows.

use std::future::{Ready, ready};

use actix_web::body::MessageBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header;
use actix_web::middleware::Next;
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::no_route;
use super::observe::Pattern;
use super::problem::{Code, Problem};
use crate::app::App;
use crate::domain::ids::{ApiKeyId, TenantId};
use crate::identity::keys::{self, Holder, KeyError};
use crate::identity::scope::{Scope, Scopes};

/// Paths below `/v1` that need no credentials, as route patterns.
const PUBLIC: [&str; 2] = ["/v1/auth/login", "/v1/auth/refresh"];

/// Who is behind a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// One of a tenant's API keys.
    ApiKey(ApiKeyId),
    /// A platform key; `None` for the configured one.
    PlatformKey(Option<Uuid>),
}

impl std::fmt::Display for Actor {
    /// As histories name it: `api_key:<id>`, `platform_key:<id>` or `platform`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ApiKey(id) => write!(f, "api_key:{id}"),
            Self::PlatformKey(Some(id)) => write!(f, "platform_key:{id}"),
            Self::PlatformKey(None) => f.write_str("platform"),
        }
    }
}

/// The authenticated caller of a request.
#[derive(Clone, Debug)]
pub struct Caller {
    tenant: Option<TenantId>,
    scopes: Scopes,
    platform: bool,
    actor: Actor,
}

impl Caller {
    /// The tenant the caller acts for, provided that it may do `scope`.
    ///
    /// # Errors
    /// 403 `forbidden` without the scope; 403 `tenant_required` for a platform key that names no tenant.
    pub fn tenant(&self, scope: Scope) -> Result<TenantId, Problem> {
        let tenant = self.any_scope()?;
        if !self.scopes.allow(scope) {
            return Err(Problem::new(Code::Forbidden, format!("This needs the scope {scope}")));
        }
        Ok(tenant)
    }

    /// The tenant the caller acts for, whatever its scopes: for what every caller of a tenant may see.
    ///
    /// # Errors
    /// 403 `tenant_required` for a platform key that names no tenant.
    pub fn any_scope(&self) -> Result<TenantId, Problem> {
        self.tenant.ok_or_else(|| {
            Problem::new(Code::TenantRequired, "A platform key names the tenant it acts for in the header X-Tenant-Id")
        })
    }

    /// Passes those above tenants.
    ///
    /// # Errors
    /// 403 `forbidden` for everybody else.
    pub fn platform(&self) -> Result<(), Problem> {
        if self.platform { Ok(()) } else { Err(Problem::new(Code::Forbidden, "This needs a platform key")) }
    }

    /// What the caller may do.
    #[must_use]
    pub fn scopes(&self) -> Scopes {
        self.scopes
    }

    /// Whether the credential is above tenants.
    #[must_use]
    pub fn is_platform(&self) -> bool {
        self.platform
    }

    /// Who is behind the credential.
    #[must_use]
    pub fn actor(&self) -> Actor {
        self.actor
    }

    pub(super) fn tenant_for_log(&self) -> Option<TenantId> {
        self.tenant
    }
}

impl FromRequest for Caller {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(request.extensions().get::<Self>().cloned().ok_or_else(unauthorized))
    }
}

fn unauthorized() -> Problem {
    Problem::new(Code::Unauthorized, "Send a valid API key as `Authorization: Bearer <key>` or as `X-Api-Key: <key>`")
}

/// Middleware: lets a request below `/v1` through once its credentials are valid, and keeps the [`Caller`] with it.
pub(super) async fn authenticate(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let pattern = request.extensions().get::<Pattern>().and_then(|pattern| pattern.0.clone());
    match pattern.as_deref() {
        Some(pattern) if PUBLIC.contains(&pattern) => {}
        Some(_) => {
            let caller = caller(request.request()).await?;
            request.extensions_mut().insert(caller);
        }
        // Most likely no route, which nobody needs credentials to learn. But the router decodes what the pattern's search
        // does not, so whoever shows none is not let any further.
        None => {
            let caller = caller(request.request()).await.map_err(|_| no_route())?;
            request.extensions_mut().insert(caller);
        }
    }
    next.call(request).await
}

fn credential(request: &HttpRequest) -> Option<&str> {
    let headers = request.headers();
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| key.trim());
    }
    headers.get("x-api-key")?.to_str().ok().map(str::trim)
}

/// What a request showed, for answers that last: they end when it is no longer valid.
pub(super) struct Credential(SecretString);

impl Credential {
    /// The credential of `request`.
    pub(super) fn of(request: &HttpRequest) -> Option<Self> {
        credential(request).map(|key| Self(SecretString::from(key)))
    }

    /// Whether it still opens the doors. One that cannot be looked up for the moment is believed.
    pub(super) async fn is_valid(&self, app: &App) -> bool {
        let (key, now) = (self.0.expose_secret(), app.clock.now());
        let answer = match app.keys.check(key, now) {
            Some(answer) => answer,
            None => app.keys.look_up(&app.db, key, now).await,
        };
        matches!(answer, Ok(_) | Err(KeyError::Database(_)))
    }
}

async fn caller(request: &HttpRequest) -> Result<Caller, Problem> {
    let app = request.app_data::<web::Data<App>>().ok_or_else(|| Problem::new(Code::Internal, "No application"))?;
    let key = credential(request).filter(|key| key.len() <= 512).ok_or_else(unauthorized)?;
    let now = app.clock.now();
    let answer = match app.keys.check(key, now) {
        Some(answer) => answer,
        None => {
            let (parts, key) = (App::clone(app), key.to_owned());
            app.detached(async move { parts.keys.look_up(&parts.db, &key, now).await }).await?
        }
    };
    match answer {
        Ok(Holder::Tenant { tenant, key: id, scopes }) => {
            if app.keys.must_touch(key, now) {
                let parts = App::clone(app);
                app.spawn(async move {
                    if let Err(fault) = keys::touch(&parts.db, id, now).await {
                        tracing::debug!(%fault, "the last use of a key could not be written down");
                    }
                });
            }
            Ok(Caller { tenant: Some(tenant), scopes, platform: false, actor: Actor::ApiKey(id) })
        }
        Ok(Holder::Platform(id)) => Ok(Caller {
            tenant: named_tenant(app, request).await?,
            scopes: Scopes::EVERYTHING,
            platform: true,
            actor: Actor::PlatformKey(id),
        }),
        Err(KeyError::Invalid) => Err(unauthorized()),
        Err(KeyError::InactiveTenant) => Err(inactive()),
        Err(KeyError::Database(fault)) => Err(fault.into()),
    }
}

fn inactive() -> Problem {
    Problem::new(Code::Forbidden, "The tenant is inactive")
}

/// The tenant that a platform key names; only for one of these is the header read at all.
async fn named_tenant(app: &web::Data<App>, request: &HttpRequest) -> Result<Option<TenantId>, Problem> {
    let Some(value) = request.headers().get("x-tenant-id") else { return Ok(None) };
    let no_tenant = || Problem::new(Code::NotFound, "X-Tenant-Id names no tenant");
    let tenant: TenantId = value.to_str().ok().and_then(|text| text.trim().parse().ok()).ok_or_else(no_tenant)?;
    let active = match app.keys.known_tenant(tenant) {
        Some(active) => active,
        None => {
            let parts = App::clone(app);
            let found = app.detached(async move { parts.keys.tenant(&parts.db, tenant).await }).await??;
            found.ok_or_else(no_tenant)?
        }
    };
    if active { Ok(Some(tenant)) } else { Err(inactive()) }
}
