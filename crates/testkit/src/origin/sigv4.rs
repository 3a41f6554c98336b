//! AWS Signature Version 4, the checking side.

use hyper::header;
use sha2::{Digest, Sha256};

use super::request::Ask;
use super::stores::Failure;
use super::text::encode;
use crate::content::hex;

const PAYLOAD: &str = "x-amz-content-sha256";

/// Whether the SHA-256 of the body is a part of the signature.
pub(super) fn signs_body(ask: &Ask) -> bool {
    ask.text(PAYLOAD).is_none_or(|payload| payload.len() == 64)
}

/// Checks that the request is signed by that key. `sha256` is that of its body, in hex, when the signature holds it.
pub(super) fn check(ask: &Ask, sha256: Option<&str>, id: &str, secret: &str) -> Result<(), Failure> {
    let Some(authorization) = ask.header(header::AUTHORIZATION) else { return Err(Failure::of_status(403)) };
    let fields = parse(authorization)
        .ok_or_else(|| Failure::new(400, "AuthorizationHeaderMalformed", "The authorization header is malformed"))?;
    if fields.id != id {
        let message = "The AWS Access Key Id you provided does not exist in our records.";
        return Err(Failure::new(403, "InvalidAccessKeyId", message));
    }
    if fields.signature != signature(ask, sha256, &fields, secret) {
        let message = "The request signature we calculated does not match the signature you provided.";
        return Err(Failure::new(403, "SignatureDoesNotMatch", message));
    }
    if let (Some(told), Some(is)) = (ask.text(PAYLOAD), sha256)
        && told != is
    {
        let message = "The provided 'x-amz-content-sha256' header does not match what was computed.";
        return Err(Failure::new(400, "XAmzContentSHA256Mismatch", message));
    }
    Ok(())
}

struct Fields<'a> {
    id: &'a str,
    /// `date/region/service/aws4_request`
    scope: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

fn parse(authorization: &str) -> Option<Fields<'_>> {
    let rest = authorization.strip_prefix("AWS4-HMAC-SHA256")?;
    let field = |name: &str| rest.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
    let (id, scope) = field("Credential")?.split_once('/')?;
    Some(Fields { id, scope, signed_headers: field("SignedHeaders")?, signature: field("Signature")? })
}

fn signature(ask: &Ask, sha256: Option<&str>, fields: &Fields<'_>, secret: &str) -> String {
    let mut pairs: Vec<String> =
        ask.query.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.sort();
    let headers: String = fields
        .signed_headers
        .split(';')
        .map(|name| {
            let value = ask.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            format!("{name}:{}\n", value.split_whitespace().collect::<Vec<_>>().join(" "))
        })
        .collect();
    let payload = ask.text(PAYLOAD).or(sha256).unwrap_or_default();
    let canonical = format!(
        "{}\n{}\n{}\n{headers}\n{}\n{payload}",
        ask.method,
        ask.raw_path,
        pairs.join("&"),
        fields.signed_headers
    );
    let date = ask.text("x-amz-date").unwrap_or_default();
    let digest = hex(&Sha256::digest(canonical.as_bytes()));
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{}\n{digest}", fields.scope);
    let key = fields.scope.split('/').fold(format!("AWS4{secret}").into_bytes(), |key, part| hmac(&key, part).to_vec());
    hex(&hmac(&key, &to_sign))
}

fn hmac(key: &[u8], message: &str) -> [u8; 32] {
    let mut block = [0u8; 64];
    match key.len() {
        0..=64 => block[..key.len()].copy_from_slice(key),
        _ => block[..32].copy_from_slice(&Sha256::digest(key)),
    }
    let inner = Sha256::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(message.as_bytes()).finalize();
    Sha256::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_known_answer() {
        // RFC 4231, test case 2.
        let wanted = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex(&hmac(b"Jefe", "what do ya want for nothing?")), wanted);
    }
}
