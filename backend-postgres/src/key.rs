//! The key of an advisory lock: `hashtextextended(path, 0)`, computed here too.
//!
//! A step has to know the key before it is sent: whether the session holds it already decides what the
//! step may try. [`PROBE`] is hashed by the server when we connect, to see that both agree.

/// What the server is asked to hash, and what that has to give.
pub(crate) const PROBE: &str = "tenure/1/probe/\u{e9}\u{43a}\u{1f511} and a tail";

/// The server's `hashtextextended(text, 0)`, in a database whose encoding is UTF-8. Bob Jenkins's
/// `lookup3`, as PostgreSQL has it in `hash_bytes_extended`.
pub(crate) fn key_of(text: &str) -> i64 {
    let bytes = text.as_bytes();
    let start = 0x9e37_79b9_u32
        .wrapping_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
        .wrapping_add(3_923_095);
    let (mut a, mut b, mut c) = (start, start, start);
    let word = |chunk: &[u8], at: usize| -> u32 {
        let mut four = [0; 4];
        for (to, from) in four.iter_mut().zip(chunk.iter().skip(at)) {
            *to = *from;
        }
        u32::from_le_bytes(four)
    };
    let mut chunks = bytes.chunks_exact(12);
    for chunk in &mut chunks {
        a = a.wrapping_add(word(chunk, 0));
        b = b.wrapping_add(word(chunk, 4));
        c = c.wrapping_add(word(chunk, 8));
        // mix
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
    }
    let tail = chunks.remainder();
    a = a.wrapping_add(word(tail, 0));
    b = b.wrapping_add(word(tail, 4));
    // The lowest byte of `c` stands for the length.
    c = c.wrapping_add(word(tail, 8) << 8);
    // final
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    ((u64::from(b) << 32) | u64::from(c)).cast_signed()
}

/// A nonce as a bigint, bit for bit.
pub(crate) fn signed(nonce: u64) -> i64 {
    nonce.cast_signed()
}

/// A nonce as it stands in keys and messages.
pub(crate) fn hex(nonce: u64) -> String {
    format!("{nonce:016x}")
}
