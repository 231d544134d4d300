//! From a message as it is stored to what WAHA is asked to send.

use crate::app::App;
use crate::domain::content::{Content, Kind, MediaContent};
use crate::domain::failure::FailureCode;
use crate::media;
use crate::sending::claim::Claimed;
use crate::waha::{
    self, ContactCard, ForwardMessage, MediaKind, Outgoing, Poll, SendContacts, SendLocation, SendMedia, SendPoll,
    SendText,
};

/// Why a message cannot be put together.
#[derive(Debug)]
pub enum Unfit {
    /// It never can.
    Never(FailureCode, String),
    /// It may be possible later.
    NotYet(String),
}

/// What the message consists of.
#[derive(Debug)]
pub struct Parts {
    /// What kind of message it is.
    pub kind: Kind,
    /// What it says beyond its body.
    pub content: Content,
}

impl Parts {
    /// Reads what was stored.
    ///
    /// # Errors
    /// [`Unfit::Never`], when that is no message.
    pub fn read(claimed: &Claimed) -> Result<Self, Unfit> {
        let unreadable =
            |what: &str| Unfit::Never(FailureCode::InvalidRequest, format!("The stored {what} cannot be read."));
        let kind = claimed.kind.parse().map_err(|_| unreadable("type"))?;
        let content = match &claimed.content {
            Some(stored) => serde_json::from_value(stored.clone()).map_err(|_| unreadable("content"))?,
            None => Content::default(),
        };
        Ok(Self { kind, content })
    }

    /// The endpoint that takes it.
    #[must_use]
    pub const fn endpoint(&self) -> &'static str {
        waha::endpoint_of(self.kind, self.content.forwards.is_some())
    }
}

/// Puts the request together: `parts` of `claimed`, by the session that WAHA calls `session`, to `chat_id`.
///
/// # Errors
/// [`Unfit`].
pub async fn compose(
    app: &App,
    claimed: &Claimed,
    parts: Parts,
    session: &str,
    chat_id: &str,
    id: Option<String>,
) -> Result<Outgoing, Unfit> {
    let Parts { kind, content } = parts;
    let (session, chat_id) = (session.to_owned(), chat_id.to_owned());
    if let Some(message_id) = content.forwards {
        return Ok(Outgoing::Forward(ForwardMessage { session, chat_id, message_id, id }));
    }
    if claimed.replies && claimed.quoted.is_none() {
        let detail = "The message it answers is not known to WhatsApp.".to_owned();
        return Err(Unfit::Never(FailureCode::NotFound, detail));
    }
    let reply_to = claimed.quoted.clone();
    let lacks = |what: &str| Unfit::Never(FailureCode::InvalidRequest, format!("The stored message has no {what}."));
    let file = async |kind: MediaKind, file: Option<MediaContent>| {
        let file = file.ok_or_else(|| lacks("media"))?;
        Ok(Outgoing::Media(SendMedia {
            kind,
            session: session.clone(),
            chat_id: chat_id.clone(),
            file: hand_over(app, claimed, &file).await?,
            caption: Some(claimed.body.clone()).filter(|body| !body.is_empty()),
            id: id.clone(),
            reply_to: reply_to.clone(),
            mentions: content.mentions.clone(),
        }))
    };
    match kind {
        Kind::Image => file(MediaKind::Image, content.media).await,
        Kind::Video => file(MediaKind::Video, content.media).await,
        Kind::Voice => file(MediaKind::Voice, content.media).await,
        Kind::Document => file(MediaKind::Document, content.media).await,
        Kind::Text => Ok(Outgoing::Text(SendText {
            session,
            chat_id,
            text: claimed.body.clone(),
            id,
            reply_to,
            mentions: content.mentions,
            link_preview: content.link_preview,
        })),
        Kind::Location => {
            let place = content.location.ok_or_else(|| lacks("location"))?;
            let title = place.name.unwrap_or_default();
            let (latitude, longitude) = (place.latitude, place.longitude);
            Ok(Outgoing::Location(SendLocation { session, chat_id, latitude, longitude, title, id, reply_to }))
        }
        Kind::Contact => {
            let contacts = content
                .contacts
                .into_iter()
                .map(|card| ContactCard {
                    full_name: card.full_name,
                    whatsapp_id: Some(card.phone.trim_start_matches('+').to_owned()),
                    phone_number: card.phone,
                    organization: card.organization,
                })
                .collect();
            Ok(Outgoing::Contacts(SendContacts { session, chat_id, contacts, id, reply_to }))
        }
        Kind::Poll => {
            let poll = content.poll.ok_or_else(|| lacks("poll"))?;
            let poll = Poll { name: poll.question, options: poll.options, multiple_answers: poll.multiple };
            Ok(Outgoing::Poll(SendPoll { session, chat_id, poll, id, reply_to }))
        }
    }
}

/// The file as WAHA can take it.
async fn hand_over(app: &App, claimed: &Claimed, file: &MediaContent) -> Result<waha::MediaFile, Unfit> {
    let (tenant, message) = (claimed.turn.tenant_id, claimed.turn.message_id);
    media::hand_over(app, tenant, message, file).await.map_err(|fault| match fault.failure() {
        Some(code) => Unfit::Never(code, format!("The file cannot be sent: {fault}.")),
        None => Unfit::NotYet(format!("The file is not there yet: {fault}.")),
    })
}
