use actix_web::web::ServiceConfig;
pub(super) fn routes(_cfg: &mut ServiceConfig) {}
pub(super) fn openapi() -> utoipa::openapi::OpenApi {
    utoipa::openapi::OpenApi::default()
}
