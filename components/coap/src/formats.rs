//! Content formats and the media types they stand for (IANA registry "CoAP Content-Formats").

/// `text/plain; charset=utf-8`.
pub(crate) const TEXT: u16 = 0;
/// `application/link-format`.
pub(crate) const LINK_FORMAT: u16 = 40;

const FORMATS: &[(u16, &str)] = &[
    (TEXT, "text/plain; charset=utf-8"),
    (16, "application/cose; cose-type=\"cose-encrypt0\""),
    (17, "application/cose; cose-type=\"cose-mac0\""),
    (18, "application/cose; cose-type=\"cose-sign1\""),
    (21, "image/gif"),
    (22, "image/jpeg"),
    (23, "image/png"),
    (LINK_FORMAT, "application/link-format"),
    (41, "application/xml"),
    (42, "application/octet-stream"),
    (47, "application/exi"),
    (50, "application/json"),
    (51, "application/json-patch+json"),
    (52, "application/merge-patch+json"),
    (60, "application/cbor"),
    (61, "application/cwt"),
    (62, "application/multipart-core"),
    (63, "application/cbor-seq"),
    (110, "application/senml+json"),
    (111, "application/sensml+json"),
    (112, "application/senml+cbor"),
    (113, "application/sensml+cbor"),
    (114, "application/senml-exi"),
    (115, "application/sensml-exi"),
    (310, "application/senml+xml"),
    (311, "application/sensml+xml"),
    (432, "application/td+json"),
    (10_000, "application/vnd.ocf+cbor"),
    (11_542, "application/vnd.oma.lwm2m+tlv"),
    (11_543, "application/vnd.oma.lwm2m+json"),
    (11_544, "application/vnd.oma.lwm2m+cbor"),
    (20_000, "text/css"),
    (30_000, "image/svg+xml"),
];

/// The media type of a content format; none when it is not known here.
pub(crate) fn media_type(format: u16) -> Option<&'static str> {
    FORMATS.iter().find(|(number, _)| *number == format).map(|(_, name)| *name)
}

/// The content format of a media type, whatever its case and parameters; none when it has no number.
pub(crate) fn number(media_type: &str) -> Option<u16> {
    let essence = |text: &str| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let exact = FORMATS.iter().find(|(_, name)| name.eq_ignore_ascii_case(media_type));
    // Parameters tell the COSE formats apart, so they count there and nowhere else.
    exact.or_else(|| FORMATS.iter().find(|(_, name)| !name.contains("cose-type") && essence(name) == essence(media_type))).map(|(number, _)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_found_by_its_media_type() {
        for (format, name) in FORMATS {
            assert_eq!((media_type(*format), number(name)), (Some(*name), Some(*format)));
        }
        assert_eq!(number("Application/JSON; charset=utf-8"), Some(50));
        assert_eq!(number("text/plain"), Some(TEXT));
        assert_eq!((number("application/cose"), number("x/y"), media_type(65_000)), (None, None, None));
    }
}
