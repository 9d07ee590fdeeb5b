//! A module's text: its functions, variables and files, before any instruction is decoded.

use crate::{
    lexer::{Lexer, Token},
    types::Ty,
};
use std::collections::HashMap;

/// A module as its text says it. Bodies are decoded when a kernel is first launched.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) text: String,
    pub(crate) target: String,
    pub(crate) files: HashMap<u32, String>,
    pub(crate) functions: HashMap<String, Function>,
    pub(crate) variables: Vec<Variable>,
}

/// An entry or a device function.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub(crate) is_entry: bool,
    pub(crate) params: Vec<Param>,
    pub(crate) returns: Vec<Param>,
    /// First byte after the opening brace.
    pub(crate) start: usize,
    /// Its line.
    pub(crate) line: u32,
    /// Byte of the closing brace.
    pub(crate) end: usize,
    /// What `.maxntid` says.
    pub(crate) max_threads: Option<u32>,
}

/// A parameter.
#[derive(Debug, Clone)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) align: usize,
    pub(crate) size: usize,
}

/// Where a variable lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Shared,
    Local,
    Param,
}

/// A variable of the module, or of a function.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) space: Space,
    pub(crate) align: usize,
    pub(crate) size: usize,
    /// Its first bytes; the rest is zero. `.shared` variables have none and are not zero.
    pub(crate) bytes: Vec<u8>,
    /// Of the size that the launch says.
    pub(crate) is_extern: bool,
}

impl Module {
    /// Reads the text of a module.
    ///
    /// # Errors
    ///
    /// The line and what was not understood.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut module = Self {
            text: text.to_owned(),
            target: String::new(),
            files: HashMap::new(),
            functions: HashMap::new(),
            variables: Vec::new(),
        };
        let mut lexer = Lexer::new(text, 0, 1);
        let mut header: Vec<Token<'_>> = Vec::new();
        let mut line = 1;
        while let Some(token) = lexer.next() {
            if header.is_empty() {
                line = lexer.line();
                if let Token::Word(word) = token
                    && module.directive(word, &mut lexer)
                {
                    continue;
                }
            }
            match token {
                Token::Mark(b'{') if is_function(&header) => {
                    let start = lexer.offset();
                    let body_line = lexer.line();
                    let end = skip_braces(&mut lexer).ok_or("a body has no end")?;
                    let (name, function) =
                        function(&header, start, body_line, end).ok_or_else(|| {
                            format!("line {line}: the head of a function is not understood")
                        })?;
                    module.functions.insert(name, function);
                    header.clear();
                }
                Token::Mark(b';') => {
                    if !is_function(&header) && !matches!(header[..], [Token::Word(".pragma"), ..])
                    {
                        let variable = variable(&header)
                            .map_err(|message| format!("line {line}: {message}"))?;
                        module.variables.push(variable);
                    }
                    header.clear();
                }
                _ => header.push(token),
            }
        }
        Ok(module)
    }

    /// Takes a directive that has no semicolon.
    fn directive(&mut self, word: &str, lexer: &mut Lexer<'_>) -> bool {
        match word {
            ".version" | ".address_size" => {
                lexer.next();
            }
            ".target" => {
                if let Some(Token::Word(target)) = lexer.next() {
                    target.clone_into(&mut self.target);
                }
                skip_line(lexer);
            }
            ".file" => {
                let number = lexer.next();
                let name = lexer.next();
                if let (Some(Token::Word(number)), Some(Token::Text(name))) = (number, name)
                    && let Ok(number) = number.parse()
                {
                    self.files.insert(number, name.to_owned());
                }
                skip_line(lexer);
            }
            ".section" => {
                while let Some(token) = lexer.next() {
                    if token == Token::Mark(b'{') {
                        skip_braces(lexer);
                        break;
                    }
                }
            }
            _ => return false,
        }
        true
    }
}

/// Goes to the end of the last token's line.
pub(crate) fn skip_line(lexer: &mut Lexer<'_>) {
    let line = lexer.line();
    while lexer.peek().is_some_and(|(_, next)| next == line) {
        lexer.next();
    }
}

/// Goes behind the brace that closes what is open, and says where it is.
fn skip_braces(lexer: &mut Lexer<'_>) -> Option<usize> {
    let mut depth = 1;
    while let Some(token) = lexer.next() {
        match token {
            Token::Mark(b'{') => depth += 1,
            Token::Mark(b'}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(lexer.offset() - 1);
        }
    }
    None
}

fn is_function(header: &[Token<'_>]) -> bool {
    header
        .iter()
        .any(|token| matches!(token, Token::Word(".entry" | ".func")))
}

fn function(
    header: &[Token<'_>],
    start: usize,
    line: u32,
    end: usize,
) -> Option<(String, Function)> {
    let keyword = header
        .iter()
        .position(|token| matches!(token, Token::Word(".entry" | ".func")))?;
    let mut at = keyword + 1;
    let returns = params(header, &mut at)?;
    let Token::Word(name) = header.get(at)? else {
        return None;
    };
    at += 1;
    let params = params(header, &mut at)?;
    let max_threads = header
        .iter()
        .position(|token| matches!(token, Token::Word(".maxntid" | ".reqntid")))
        .map(|first| {
            header[first + 1..]
                .iter()
                .take_while(|token| !matches!(token, Token::Word(word) if word.starts_with('.')))
                .filter_map(|token| match token {
                    Token::Word(number) => number.parse::<u32>().ok(),
                    _ => None,
                })
                .product()
        });
    Some((
        (*name).to_owned(),
        Function {
            is_entry: header[keyword] == Token::Word(".entry"),
            params,
            returns,
            start,
            line,
            end,
            max_threads,
        },
    ))
}

/// The parameters between parentheses at `at`, if there are any.
fn params(header: &[Token<'_>], at: &mut usize) -> Option<Vec<Param>> {
    let mut found = Vec::new();
    if header.get(*at) != Some(&Token::Mark(b'(')) {
        return Some(found);
    }
    let length = header[*at..]
        .iter()
        .position(|token| *token == Token::Mark(b')'))?;
    let inside = &header[*at + 1..*at + length];
    *at += length + 1;
    for declaration in inside.split(|token| *token == Token::Mark(b',')) {
        if declaration.is_empty() {
            continue;
        }
        let variable = variable(declaration).ok()?;
        found.push(Param {
            name: variable.name,
            align: variable.align,
            size: variable.size,
        });
    }
    Some(found)
}

/// A declaration: `.global .align 4 .b8 name[16] = {…}` and the like.
///
/// # Errors
///
/// What was not understood.
pub(crate) fn variable(tokens: &[Token<'_>]) -> Result<Variable, String> {
    let mut space = None;
    let mut is_extern = false;
    let mut align = 1;
    let mut ty = None;
    let mut vector = 1;
    let mut at = 0;
    let name = loop {
        let Some(Token::Word(word)) = tokens.get(at) else {
            return Err("a declaration is not understood".to_owned());
        };
        at += 1;
        match *word {
            ".global" | ".const" => space = Some(Space::Global),
            ".shared" => space = Some(Space::Shared),
            ".local" => space = Some(Space::Local),
            ".param" => space = Some(Space::Param),
            ".extern" => is_extern = true,
            ".v2" => vector = 2,
            ".v4" => vector = 4,
            ".align" => {
                if let Some(Token::Word(number)) = tokens.get(at) {
                    align = number
                        .parse()
                        .map_err(|_| format!("alignment `{number}`"))?;
                    at += 1;
                }
            }
            _ => {
                if let Some(found) = word.strip_prefix('.').and_then(Ty::parse) {
                    ty = Some(found);
                } else if !word.starts_with('.') {
                    break *word;
                }
            }
        }
    };
    let ty = ty.ok_or_else(|| format!("`{name}` has no type"))?;
    let mut count = 1;
    while tokens.get(at) == Some(&Token::Mark(b'[')) {
        match (tokens.get(at + 1), tokens.get(at + 2)) {
            (Some(Token::Word(number)), Some(Token::Mark(b']'))) => {
                count *= number
                    .parse::<usize>()
                    .map_err(|_| format!("length `{number}`"))?;
                at += 3;
            }
            _ => {
                // No length: as long as the launch says.
                count = 0;
                at += 2;
            }
        }
    }
    let mut bytes = Vec::new();
    if tokens.get(at) == Some(&Token::Mark(b'=')) {
        let mut negative = false;
        for token in &tokens[at + 1..] {
            match token {
                Token::Mark(b'-') => negative = true,
                Token::Word(number) => {
                    let value =
                        number_bits(number, ty).ok_or_else(|| format!("initial `{number}`"))?;
                    let value = if negative {
                        value.wrapping_neg()
                    } else {
                        value
                    };
                    bytes.extend_from_slice(&value.to_le_bytes()[..ty.size()]);
                    negative = false;
                }
                _ => {}
            }
        }
    }
    let size = count * vector * ty.size();
    Ok(Variable {
        name: name.to_owned(),
        space: space.ok_or_else(|| format!("`{name}` is in no state space"))?,
        align: align.max(ty.size() * vector),
        size,
        bytes,
        is_extern: is_extern || size == 0,
    })
}

/// The bits of a number as PTX writes it, where a value of type `ty` is asked for.
pub(crate) fn number_bits(word: &str, ty: Ty) -> Option<u64> {
    let lower = word.as_bytes();
    if lower.len() == 10 && lower[0] == b'0' && matches!(lower[1], b'f' | b'F') {
        let bits = u32::from_str_radix(&word[2..], 16).ok()?;
        return Some(if ty == Ty::F64 {
            f64::from(f32::from_bits(bits)).to_bits()
        } else {
            u64::from(bits)
        });
    }
    if lower.len() == 18 && lower[0] == b'0' && matches!(lower[1], b'd' | b'D') {
        let bits = u64::from_str_radix(&word[2..], 16).ok()?;
        return Some(if ty == Ty::F32 {
            u64::from((f64::from_bits(bits) as f32).to_bits())
        } else {
            bits
        });
    }
    let digits = word.trim_end_matches('U');
    if let Some(hex) = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        return u64::from_str_radix(hex, 16).ok();
    }
    if let Some(binary) = digits.strip_prefix("0b") {
        return u64::from_str_radix(binary, 2).ok();
    }
    if let Ok(value) = digits.parse::<u64>() {
        return Some(value);
    }
    let value = digits.parse::<f64>().ok()?;
    Some(if ty == Ty::F64 {
        value.to_bits()
    } else {
        u64::from((value as f32).to_bits())
    })
}
