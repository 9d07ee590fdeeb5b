//! PTX text as words and marks, each with its line.

/// A piece of PTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// A name, a directive, an opcode with its qualifiers, or a number without its sign.
    Word(&'a str),
    /// What stands between quotation marks.
    Text(&'a str),
    /// Any other character.
    Mark(u8),
}

/// Cuts a text into tokens and leaves comments out.
#[derive(Debug, Clone)]
pub(crate) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

impl<'a> Lexer<'a> {
    /// Starts at byte `at` of `text`, which lies on line `line`.
    pub(crate) fn new(text: &'a str, at: usize, line: u32) -> Self {
        Self { text, at, line }
    }

    /// The byte after the last token.
    pub(crate) fn offset(&self) -> usize {
        self.at
    }

    /// The line of the last token.
    pub(crate) fn line(&self) -> u32 {
        self.line
    }

    /// The next token, left in place.
    pub(crate) fn peek(&self) -> Option<(Token<'a>, u32)> {
        let mut ahead = self.clone();
        ahead.next().map(|token| (token, ahead.line))
    }

    fn skip_blank(&mut self) {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            match byte {
                b'\n' => {
                    self.line += 1;
                    self.at += 1;
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'/' if bytes.get(self.at + 1) == Some(&b'/') => {
                    while self.at < bytes.len() && bytes[self.at] != b'\n' {
                        self.at += 1;
                    }
                }
                b'/' if bytes.get(self.at + 1) == Some(&b'*') => {
                    let end = self.text[self.at + 2..]
                        .find("*/")
                        .map_or(bytes.len(), |length| self.at + 2 + length + 2);
                    self.line += count_lines(&self.text[self.at..end]);
                    self.at = end;
                }
                _ => return,
            }
        }
    }
}

fn count_lines(text: &str) -> u32 {
    text.bytes()
        .filter(|&byte| byte == b'\n')
        .fold(0, |n, _| n + 1)
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.skip_blank();
        let bytes = self.text.as_bytes();
        let start = self.at;
        let &first = bytes.get(start)?;
        if first == b'"' {
            let end = self.text[start + 1..]
                .find('"')
                .map_or(bytes.len(), |length| start + 1 + length);
            self.at = (end + 1).min(bytes.len());
            self.line += count_lines(&self.text[start..self.at]);
            return Some(Token::Text(&self.text[start + 1..end]));
        }
        if !in_word(first) {
            // Only ASCII has a meaning outside of comments; any other character is passed on byte by byte as a mark.
            self.at += 1;
            return Some(Token::Mark(first));
        }
        let mut end = start;
        while end < bytes.len() {
            if in_word(bytes[end]) {
                end += 1;
            } else if bytes[end] == b':'
                && bytes.get(end + 1) == Some(&b':')
                && bytes.get(end + 2).is_some_and(|&byte| in_word(byte))
            {
                end += 2;
            } else {
                break;
            }
        }
        self.at = end;
        Some(Token::Word(&self.text[start..end]))
    }
}
