//! Cards of people, as far as a tenant is shown them: name, number, organization.

use crate::domain::content::ContactCard;

/// Reads a vCard; what it does not say is empty.
pub fn read(card: &str) -> ContactCard {
    let (mut full_name, mut phone, mut organization) = (None, None, None);
    for line in unfolded(card).lines() {
        let Some((head, value)) = line.split_once(':') else { continue };
        let mut parts = head.split(';');
        // A group name may stand before the property's.
        let name = parts.next().unwrap_or_default().rsplit('.').next().unwrap_or_default();
        let value = value.trim().replace("\\,", ",").replace("\\;", ";").replace("\\n", " ");
        match name.to_ascii_uppercase().as_str() {
            "FN" if !value.is_empty() => full_name = full_name.or(Some(value)),
            "TEL" => {
                // WhatsApp's own number of the person, where it is told.
                let known = parts.find_map(|part| part.to_ascii_lowercase().strip_prefix("waid=").map(str::to_owned));
                let number = known.map_or(value, |digits| format!("+{digits}"));
                phone =
                    phone.or_else(|| Some(number).filter(|number| number.bytes().any(|byte| byte.is_ascii_digit())));
            }
            "ORG" => {
                let named = value.trim_matches(';').to_owned();
                organization = organization.or(Some(named).filter(|named| !named.is_empty()));
            }
            _ => {}
        }
    }
    ContactCard { full_name: full_name.unwrap_or_default(), phone: phone.unwrap_or_default(), organization }
}

/// A line that begins with a blank goes on the one before.
fn unfolded(card: &str) -> String {
    card.replace("\r\n", "\n").replace("\n ", "").replace("\n\t", "")
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn name_number_and_organization_are_found() {
        let card = read(
            "BEGIN:VCARD\r\nVERSION:3.0\r\nFN:Jane \r\n Doe\r\nitem1.ORG:Acme\\, Inc;\r\nitem1.TEL;type=CELL;waid=15550100001:+1 555-010-0001\r\nEND:VCARD",
        );
        assert_eq!((card.full_name.as_str(), card.phone.as_str()), ("Jane Doe", "+15550100001"));
        assert_eq!(card.organization.as_deref(), Some("Acme, Inc"));
        let bare = read("FN:Only a name");
        assert_eq!((bare.full_name.as_str(), bare.phone.as_str(), bare.organization), ("Only a name", "", None));
    }
}
