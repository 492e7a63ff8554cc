#![no_main]

use brine_exec::protocol::frame::{HEADER_LEN, decode_header, encode_header};
use brine_exec::protocol::{Ended, Request, Streams, Window};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = Request::decode(data) {
        assert_eq!(Request::decode(&request.encode()).expect("just encoded"), request);
    }
    if let Ok(ended) = Ended::decode(data) {
        Ended::decode(&ended.encode()).expect("just encoded");
    }
    if let Ok(streams) = Streams::decode(data) {
        assert_eq!(streams.encode(), data);
    }
    if let Ok(window) = Window::decode(data) {
        assert_eq!(window.encode(), data);
    }
    if let Some(header) = data.first_chunk::<HEADER_LEN>()
        && let Ok((kind, len)) = decode_header(header)
    {
        assert_eq!(&encode_header(kind, len).expect("a length that was allowed"), header);
    }
});
