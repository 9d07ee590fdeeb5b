//! From the text of a kernel to its [`Program`].

mod arithmetic;
mod asynchronous;
mod control;
mod matrix;
mod memory;
mod operand;

use crate::{
    lexer::{Lexer, Token},
    module::{self, Function, Module, Space},
    program::{Instruction, Op, PRED_SINK, Place, Pred, Program, Reg, Row, SINK, Source, Window},
    types::Ty,
};
use operand::Operand;
use std::collections::HashMap;

/// Why a kernel could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// No such kernel.
    NoKernel(String),
    /// An instruction that is not known, or not with these operands.
    Unknown { line: u32, what: String },
}

/// What a name means.
#[derive(Debug, Clone)]
enum Symbol {
    Reg(Reg, u32),
    Pred(Row),
    Address(Window, u64),
    /// Dynamic shared memory: behind what the program itself has.
    DynamicShared,
    Targets(Vec<String>),
}

/// Names of one pair of braces.
#[derive(Debug, Default)]
struct Scope {
    id: u32,
    names: HashMap<String, Symbol>,
    /// `%r<14>`: prefix, first row, how many, bits (1 for predicates).
    ranges: HashMap<String, (Row, u32, u32)>,
}

/// A branch whose target is not known yet.
struct Fixup {
    instruction: usize,
    scopes: Vec<u32>,
    labels: Vec<String>,
}

struct Decoder<'a> {
    module: &'a Module,
    /// Addresses of the module's variables.
    globals: &'a HashMap<String, u64>,
    program: Program,
    opcodes: HashMap<String, u32>,
    constants: HashMap<Source, Row>,
    wide_constants: HashMap<Source, Row>,
    shared: HashMap<String, u64>,
    scopes: Vec<Scope>,
    next_scope: u32,
    labels: HashMap<(u32, String), u32>,
    fixups: Vec<Fixup>,
    /// Positions by file, line and column, to find those at which functions were inlined.
    positions: HashMap<(u32, u32, u32), u32>,
    place: u32,
    /// Functions that are being inlined, from the outside.
    calls: Vec<String>,
    line: u32,
    guard: Option<Pred>,
    opcode: u32,
}

/// An opcode in its parts.
#[derive(Debug, Clone)]
struct Opcode<'a> {
    whole: &'a str,
    base: &'a str,
    qualifiers: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    fn new(whole: &'a str) -> Self {
        let mut parts = whole.split('.');
        Self {
            whole,
            base: parts.next().unwrap_or(""),
            qualifiers: parts.collect(),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.qualifiers.contains(&name)
    }

    fn types(&self) -> impl DoubleEndedIterator<Item = Ty> {
        self.qualifiers.iter().filter_map(|name| Ty::parse(name))
    }

    /// The last type, which is that of the operands.
    fn ty(&self) -> Option<Ty> {
        self.types().next_back()
    }
}

type Decoded<T> = Result<T, String>;

/// Decodes the kernel `name` of a module whose variables are at `globals`.
pub(crate) fn decode(
    module: &Module,
    globals: &HashMap<String, u64>,
    name: &str,
) -> Result<Program, DecodeError> {
    let function = module
        .functions
        .get(name)
        .filter(|function| function.is_entry)
        .ok_or_else(|| DecodeError::NoKernel(name.to_owned()))?;
    let program = Program {
        name: name.to_owned(),
        code: Vec::new(),
        opcodes: Vec::new(),
        places: vec![Place {
            file: String::new(),
            line: 0,
            inlined_at: None,
        }],
        rows: SINK as usize + 1,
        wide_rows: SINK as usize + 1,
        preds: PRED_SINK as usize + 1,
        constants: Vec::new(),
        wide_constants: Vec::new(),
        params: function
            .params
            .iter()
            .map(|param| (param.size, param.align))
            .collect(),
        static_shared: 0,
        dynamic_shared_align: 16,
        local: 0,
        max_threads: function.max_threads,
    };
    let mut decoder = Decoder {
        module,
        globals,
        program,
        opcodes: HashMap::new(),
        constants: HashMap::new(),
        wide_constants: HashMap::new(),
        shared: HashMap::new(),
        scopes: Vec::new(),
        next_scope: 0,
        labels: HashMap::new(),
        fixups: Vec::new(),
        positions: HashMap::new(),
        place: 0,
        calls: Vec::new(),
        line: function.line,
        guard: None,
        opcode: 0,
    };
    decoder.run(function).map_err(|what| DecodeError::Unknown {
        line: decoder.line,
        what,
    })?;
    Ok(decoder.program)
}

impl<'a> Decoder<'a> {
    fn run(&mut self, function: &'a Function) -> Decoded<()> {
        self.open_scope();
        let mut offset = 0;
        for param in &function.params {
            offset = usize::next_multiple_of(offset, param.align);
            self.declare(&param.name, Symbol::Address(Window::Param, offset as u64));
            offset += param.size;
        }
        self.body(function)?;
        self.guard = None;
        self.emit(Op::Exit);
        self.scopes.pop();
        self.resolve()
    }

    /// Decodes a body into the code.
    fn body(&mut self, function: &'a Function) -> Decoded<()> {
        let module = self.module;
        let text = &module.text[..function.end];
        let mut lexer = Lexer::new(text, function.start, function.line);
        let depth = self.scopes.len();
        self.open_scope();
        let mut tokens = Vec::new();
        while let Some(token) = lexer.next() {
            self.line = lexer.line();
            match token {
                Token::Mark(b'{') => self.open_scope(),
                Token::Mark(b'}') => {
                    self.scopes.pop();
                }
                Token::Mark(b';') => {}
                Token::Word(".loc") => self.location(&mut lexer),
                Token::Word(word) if lexer.peek().is_some_and(|(t, _)| t == Token::Mark(b':')) => {
                    lexer.next();
                    let is_targets = lexer
                        .peek()
                        .is_some_and(|(t, _)| t == Token::Word(".branchtargets"));
                    if is_targets {
                        self.targets(word, &mut lexer);
                    } else {
                        let at = self.program.code.len() as u32;
                        let scope = self.scope().id;
                        self.labels.insert((scope, word.to_owned()), at);
                    }
                }
                first => {
                    tokens.clear();
                    tokens.push(first);
                    for token in lexer.by_ref() {
                        if token == Token::Mark(b';') {
                            break;
                        }
                        tokens.push(token);
                    }
                    self.statement(&tokens)?;
                }
            }
        }
        self.scopes.truncate(depth);
        Ok(())
    }

    fn statement(&mut self, tokens: &[Token<'a>]) -> Decoded<()> {
        match tokens {
            [Token::Word(".reg"), rest @ ..] => self.registers(rest),
            [Token::Word(".pragma"), ..] => Ok(()),
            [Token::Word(first), ..] if first.starts_with('.') => self.variable(tokens),
            [
                Token::Mark(b'@'),
                Token::Mark(b'!'),
                Token::Word(name),
                rest @ ..,
            ] => {
                self.guard = Some(self.guard_of(name, true)?);
                self.instruction(rest)
            }
            [Token::Mark(b'@'), Token::Word(name), rest @ ..] => {
                self.guard = Some(self.guard_of(name, false)?);
                self.instruction(rest)
            }
            _ => {
                self.guard = None;
                self.instruction(tokens)
            }
        }
    }

    fn guard_of(&self, name: &str, negated: bool) -> Decoded<Pred> {
        match self.lookup(name) {
            Some(Symbol::Pred(row)) => Ok(Pred { row, negated }),
            _ => Err(format!("`{name}` is no predicate")),
        }
    }

    fn instruction(&mut self, tokens: &[Token<'a>]) -> Decoded<()> {
        let Some((Token::Word(name), rest)) = tokens.split_first() else {
            return Err("an instruction is not understood".to_owned());
        };
        let opcode = Opcode::new(name);
        let next = self.opcodes.len() as u32;
        self.opcode = *self
            .opcodes
            .entry(opcode.whole.to_owned())
            .or_insert_with(|| {
                self.program.opcodes.push(opcode.whole.to_owned());
                next
            });
        let (operands, pair) = self.operands(rest)?;
        self.operation(&opcode, &operands, pair)
            .map_err(|what| format!("`{}`: {what}", opcode.whole))
    }

    fn operation(
        &mut self,
        opcode: &Opcode<'a>,
        operands: &[Operand<'a>],
        pair: bool,
    ) -> Decoded<()> {
        let known = self.arithmetic(opcode, operands, pair)?
            || self.memory(opcode, operands)?
            || self.control(opcode, operands, pair)?
            || self.matrix(opcode, operands)?
            || self.asynchronous(opcode, operands)?;
        if known {
            Ok(())
        } else {
            Err("not known".to_owned())
        }
    }

    /// Appends an instruction.
    fn emit(&mut self, op: Op) {
        self.program.code.push(Instruction {
            op,
            guard: self.guard,
            line: self.line,
            place: self.place,
            opcode: self.opcode,
        });
    }

    /// Appends a branch to labels that may come later.
    fn emit_branch(&mut self, op: Op, labels: Vec<String>) {
        self.fixups.push(Fixup {
            instruction: self.program.code.len(),
            scopes: self.scopes.iter().map(|scope| scope.id).collect(),
            labels,
        });
        self.emit(op);
    }

    fn resolve(&mut self) -> Decoded<()> {
        for fixup in &self.fixups {
            let mut found = Vec::new();
            for label in &fixup.labels {
                let target = fixup
                    .scopes
                    .iter()
                    .rev()
                    .find_map(|&scope| self.labels.get(&(scope, label.clone())))
                    .ok_or_else(|| format!("no label `{label}`"))?;
                found.push(*target);
            }
            match &mut self.program.code[fixup.instruction].op {
                Op::Branch { target } => *target = found[0],
                Op::BranchIndexed { targets, .. } => *targets = found.into(),
                _ => {}
            }
        }
        Ok(())
    }

    fn open_scope(&mut self) {
        self.next_scope += 1;
        self.scopes.push(Scope {
            id: self.next_scope,
            ..Scope::default()
        });
    }

    fn scope(&mut self) -> &mut Scope {
        if self.scopes.is_empty() {
            self.open_scope();
        }
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    fn declare(&mut self, name: &str, symbol: Symbol) {
        self.scope().names.insert(name.to_owned(), symbol);
    }

    fn new_row(&mut self, bits: u32) -> (Symbol, Row) {
        match bits {
            1 => {
                self.program.preds += 1;
                let row = self.program.preds as Row - 1;
                (Symbol::Pred(row), row)
            }
            64 => {
                self.program.wide_rows += 1;
                let row = self.program.wide_rows as Row - 1;
                (Symbol::Reg(Reg::Q(row), 64), row)
            }
            _ => {
                self.program.rows += 1;
                let row = self.program.rows as Row - 1;
                (Symbol::Reg(Reg::L(row), bits), row)
            }
        }
    }

    /// `.reg .b32 %r<14>, x`.
    fn registers(&mut self, tokens: &[Token<'a>]) -> Decoded<()> {
        let mut ty = None;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            let Token::Word(word) = token else {
                continue;
            };
            if let Some(name) = word.strip_prefix('.') {
                ty = Ty::parse(name);
                if ty.is_none() {
                    return Err(format!("registers of type `{word}`"));
                }
                continue;
            }
            let bits = match ty {
                Some(Ty::Pred) => 1,
                Some(Ty::B128) => return Err("registers of 128 bits".to_owned()),
                Some(ty) => 8 * ty.size() as u32,
                None => return Err(format!("`{word}` has no type")),
            };
            if let [Token::Mark(b'<'), Token::Word(count), Token::Mark(b'>'), ..] = tokens[at..] {
                let count: u32 = count.parse().map_err(|_| format!("`{count}` registers"))?;
                at += 3;
                let (_, first) = self.new_row(bits);
                for _ in 1..count {
                    self.new_row(bits);
                }
                self.scope()
                    .ranges
                    .insert((*word).to_owned(), (first, count, bits));
            } else {
                let (symbol, _) = self.new_row(bits);
                self.declare(word, symbol);
            }
        }
        Ok(())
    }

    /// A variable of the function.
    fn variable(&mut self, tokens: &[Token<'a>]) -> Decoded<()> {
        let variable = module::variable(tokens)?;
        let symbol = match variable.space {
            Space::Shared if variable.is_extern => {
                self.program.dynamic_shared_align =
                    self.program.dynamic_shared_align.max(variable.align);
                Symbol::DynamicShared
            }
            Space::Shared => Symbol::Address(Window::Shared, self.place_shared(&variable)),
            Space::Local | Space::Param => {
                self.program.local =
                    self.program.local.next_multiple_of(variable.align) + variable.size;
                Symbol::Address(Window::Local, (self.program.local - variable.size) as u64)
            }
            Space::Global => return Err(format!("`{}` is global", variable.name)),
        };
        self.declare(&variable.name, symbol);
        Ok(())
    }

    fn place_shared(&mut self, variable: &module::Variable) -> u64 {
        let start = self.program.static_shared.next_multiple_of(variable.align);
        self.program.static_shared = start + variable.size;
        start as u64
    }

    /// `name: .branchtargets A, B;`.
    fn targets(&mut self, name: &str, lexer: &mut Lexer<'a>) {
        let mut labels = Vec::new();
        for token in lexer.by_ref() {
            match token {
                Token::Mark(b';') => break,
                Token::Word(label) if !label.starts_with('.') => labels.push(label.to_owned()),
                _ => {}
            }
        }
        self.declare(name, Symbol::Targets(labels));
    }

    /// `.loc file line column[, function_name …, inlined_at file line column]`.
    fn location(&mut self, lexer: &mut Lexer<'a>) {
        let line = lexer.line();
        let mut numbers = Vec::new();
        let mut inlined = None;
        while lexer.peek().is_some_and(|(_, next)| next == line) {
            match lexer.next() {
                Some(Token::Word("inlined_at")) => inlined = Some(numbers.len()),
                Some(Token::Word(word)) => numbers.extend(word.parse::<u32>().ok()),
                _ => {}
            }
        }
        let position = |at: usize| {
            let [file, line, column] = *numbers.get(at..at + 3)? else {
                return None;
            };
            Some((file, line, column))
        };
        let Some(here) = position(0) else {
            return;
        };
        let inlined_at = inlined
            .and_then(position)
            .map(|outer| match self.positions.get(&outer) {
                Some(&index) => index,
                None => self.new_place(outer, None),
            });
        self.place = self.new_place(here, inlined_at);
    }

    fn new_place(&mut self, position: (u32, u32, u32), inlined_at: Option<u32>) -> u32 {
        if let Some(&known) = self.positions.get(&position)
            && self.program.places[known as usize].inlined_at == inlined_at
        {
            return known;
        }
        let index = self.program.places.len() as u32;
        let file = self
            .module
            .files
            .get(&position.0)
            .map_or("", |name| name.rsplit('/').next().unwrap_or(name));
        self.program.places.push(Place {
            file: file.to_owned(),
            line: position.1,
            inlined_at,
        });
        self.positions.insert(position, index);
        index
    }

    /// What a name means here.
    fn lookup(&self, name: &str) -> Option<Symbol> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let (prefix, number) = name.split_at(name.len() - digits);
        for scope in self.scopes.iter().rev() {
            if let Some(symbol) = scope.names.get(name) {
                return Some(symbol.clone());
            }
            if let Some(&(first, count, bits)) = scope.ranges.get(prefix)
                && let Ok(number) = number.parse::<u32>()
                && number < count
            {
                let row = first + number;
                return Some(match bits {
                    1 => Symbol::Pred(row),
                    64 => Symbol::Reg(Reg::Q(row), 64),
                    _ => Symbol::Reg(Reg::L(row), bits),
                });
            }
        }
        None
    }

    /// A variable of the module.
    fn module_symbol(&mut self, name: &str) -> Option<Symbol> {
        if let Some(&address) = self.globals.get(name) {
            return Some(Symbol::Address(Window::Global, address));
        }
        if let Some(&offset) = self.shared.get(name) {
            return Some(Symbol::Address(Window::Shared, offset));
        }
        let module = self.module;
        let variable = module
            .variables
            .iter()
            .find(|variable| variable.name == name && variable.space == Space::Shared)?;
        if variable.is_extern {
            self.program.dynamic_shared_align =
                self.program.dynamic_shared_align.max(variable.align);
            return Some(Symbol::DynamicShared);
        }
        let offset = self.place_shared(variable);
        self.shared.insert(name.to_owned(), offset);
        Some(Symbol::Address(Window::Shared, offset))
    }

    /// The row that holds a constant.
    fn constant(&mut self, source: Source) -> Row {
        if let Some(&row) = self.constants.get(&source) {
            return row;
        }
        let row = self.program.rows as Row;
        self.program.rows += 1;
        self.program.constants.push((row, source));
        self.constants.insert(source, row);
        row
    }

    /// The 64-bit row that holds a constant.
    fn wide_constant(&mut self, source: Source) -> Row {
        if let Some(&row) = self.wide_constants.get(&source) {
            return row;
        }
        let row = self.program.wide_rows as Row;
        self.program.wide_rows += 1;
        self.program.wide_constants.push((row, source));
        self.wide_constants.insert(source, row);
        row
    }

    /// Inlines a function: `call (result), name, (arguments)`.
    fn call(&mut self, operands: &[Operand<'a>]) -> Decoded<()> {
        let (results, name, arguments) = match operands {
            [
                Operand::Group(results),
                Operand::Name(name),
                Operand::Group(arguments),
            ] => (&results[..], *name, &arguments[..]),
            [Operand::Group(results), Operand::Name(name)] => (&results[..], *name, &[][..]),
            [Operand::Name(name), Operand::Group(arguments)] => (&[][..], *name, &arguments[..]),
            [Operand::Name(name)] => (&[][..], *name, &[][..]),
            _ => return Err("calls through registers".to_owned()),
        };
        let module = self.module;
        let function = module
            .functions
            .get(name)
            .ok_or_else(|| format!("no function `{name}`"))?;
        if self.calls.iter().any(|open| open == name) {
            return Err(format!("`{name}` calls itself"));
        }
        // A guarded call is jumped over where the guard does not hold.
        let outer_scopes = core::mem::take(&mut self.scopes);
        self.open_scope();
        let skip = self.guard.take();
        if let Some(guard) = skip {
            self.guard = Some(Pred {
                row: guard.row,
                negated: !guard.negated,
            });
            self.emit_branch(Op::Branch { target: 0 }, vec![END_OF_CALL.to_owned()]);
            self.guard = None;
        }
        let names = function.returns.iter().zip(results);
        for (param, operand) in names.chain(function.params.iter().zip(arguments)) {
            let Operand::Symbol(window, value) = operand else {
                return Err("an argument that is no parameter variable".to_owned());
            };
            self.declare(&param.name, Symbol::Address(*window, *value));
        }
        self.calls.push(name.to_owned());
        let (line, place) = (self.line, self.place);
        self.body(function)?;
        self.calls.pop();
        self.line = line;
        self.place = place;
        let end = self.program.code.len() as u32;
        let id = self.scope().id;
        self.labels.insert((id, END_OF_CALL.to_owned()), end);
        self.scopes = outer_scopes;
        Ok(())
    }
}

/// The label behind a function that is inlined.
const END_OF_CALL: &str = "end of call";
