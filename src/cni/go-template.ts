/** What a template can work with. */
export type TemplateValue = string | number | boolean | readonly TemplateValue[] | { readonly [field: string]: TemplateValue }

type Node =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'print'; readonly pipeline: Pipeline }
  | { readonly kind: 'if' | 'with'; readonly pipeline: Pipeline; readonly body: readonly Node[]; readonly otherwise: readonly Node[] }
  | { readonly kind: 'range'; readonly pipeline: Pipeline; readonly body: readonly Node[]; readonly otherwise: readonly Node[] }

interface Pipeline {
  readonly at: number
  /** `$x :=` or `$i, $x :=` */
  readonly declares: readonly string[]
  /** `$x =` instead of `$x :=` */
  readonly assigns: boolean
  readonly commands: readonly (readonly Operand[])[]
}

type Operand =
  | { readonly kind: 'literal'; readonly at: number; readonly value: TemplateValue }
  | { readonly kind: 'path'; readonly at: number; /** `$`, `$x` or `.` */ readonly from: string; readonly fields: readonly string[] }
  | { readonly kind: 'function'; readonly at: number; readonly name: string }
  | { readonly kind: 'group'; readonly at: number; readonly pipeline: Pipeline; readonly fields: readonly string[] }

interface Action {
  readonly at: number
  readonly text: string
}

/**
 * A Go text/template, as far as templates of CNI configurations use it: fields, variables, `if`, `else`, `else if`, `with`, `range`, comments, trim
 * markers, pipes, and the functions and, or, not, len, index, eq, ne, lt, le, gt, ge, print. Anything else is an error that says where it stands.
 */
export class GoTemplate {
  readonly #source: string
  readonly #nodes: readonly Node[]

  /** Throws an Error `line L, column C: …` for what it does not understand. */
  constructor(source: string) {
    this.#source = source
    this.#nodes = new Parser(source).parse()
  }

  /** The text that the template makes of `data`. Throws like the constructor when it asks for what is not there. */
  render(data: TemplateValue): string {
    return new Renderer(this.#source, data).render(this.#nodes)
  }
}

function positionOf(source: string, at: number): string {
  const before = source.slice(0, at).split('\n')
  return `line ${before.length}, column ${(before.at(-1) ?? '').length + 1}`
}

function fail(source: string, at: number, what: string): never {
  throw new Error(`${positionOf(source, at)}: ${what}`)
}

class Parser {
  readonly #source: string
  readonly #pieces: (Action | string)[]
  #next = 0

  constructor(source: string) {
    this.#source = source
    this.#pieces = split(source)
  }

  parse(): Node[] {
    return this.#list([]).nodes
  }

  /** Nodes up to an action that begins with one of `ends`, or to the end of the template. */
  #list(ends: readonly string[]): { nodes: Node[]; end: Action | undefined } {
    const nodes: Node[] = []
    for (;;) {
      const piece = this.#pieces[this.#next]
      this.#next += 1
      if (piece === undefined) return { nodes, end: undefined }
      if (typeof piece === 'string') {
        if (piece !== '') nodes.push({ kind: 'text', text: piece })
        continue
      }
      const [, word = '', rest = ''] = /^([a-z]*)([^]*)$/.exec(piece.text) ?? []
      const restAt = piece.at + word.length
      if (word === 'end' || word === 'else') {
        if (!ends.includes(word)) fail(this.#source, piece.at, `unexpected {{${word}}}`)
        return { nodes, end: piece }
      }
      if ((word === 'if' || word === 'with' || word === 'range') && /^\s/.test(rest)) nodes.push(this.#block(word, rest, restAt, piece.at))
      else if (/^(template|block|define|break|continue)$/.test(word)) fail(this.#source, piece.at, `{{${word}}} is not supported in CNI configuration templates`)
      else nodes.push({ kind: 'print', pipeline: new PipelineParser(this.#source, piece.text, piece.at).parse(1) })
    }
  }

  #block(kind: 'if' | 'with' | 'range', text: string, at: number, blockAt: number): Node {
    const pipeline = new PipelineParser(this.#source, text, at).parse(kind === 'range' ? 2 : 1)
    const { nodes: body, end } = this.#list(['else', 'end'])
    if (end === undefined) fail(this.#source, blockAt, `{{${kind}}} without {{end}}`)
    if (end.text.startsWith('end')) return { kind, pipeline, body, otherwise: [] }
    const [, chained, rest = ''] = /^else\s+(if|with)(\s[^]*)$/.exec(end.text) ?? []
    if (chained === 'if' || chained === 'with') {
      return { kind, pipeline, body, otherwise: [this.#block(chained, rest, end.at + end.text.length - rest.length, end.at)] }
    }
    if (end.text !== 'else') fail(this.#source, end.at, `unexpected {{${end.text}}}`)
    const { nodes: otherwise, end: last } = this.#list(['end'])
    if (last === undefined) fail(this.#source, blockAt, `{{${kind}}} without {{end}}`)
    return { kind, pipeline, body, otherwise }
  }
}

/** Text and actions in turn, trim markers applied, comments left out. */
function split(source: string): (Action | string)[] {
  const pieces: (Action | string)[] = []
  let from = 0
  let trimNext = false
  for (;;) {
    const open = source.indexOf('{{', from)
    const raw = source.slice(from, open === -1 ? undefined : open)
    let text = trimNext ? raw.trimStart() : raw
    if (open === -1) {
      pieces.push(text)
      return pieces
    }
    const trimBefore = /^\{\{-\s/.test(source.slice(open, open + 4))
    if (trimBefore) text = text.trimEnd()
    pieces.push(text)
    const start = open + (trimBefore ? 3 : 2)
    const close = closing(source, open, start)
    trimNext = /\s-$/.test(source.slice(start, close))
    const inner = source.slice(start, trimNext ? close - 1 : close)
    const action = inner.trim()
    if (!action.startsWith('/*')) {
      if (action === '') fail(source, open, 'an empty {{}}')
      pieces.push({ at: start + (inner.length - inner.trimStart().length), text: action })
    }
    from = close + 2
  }
}

function closing(source: string, open: number, start: number): number {
  if (/^\s*\/\*/.test(source.slice(start))) {
    const end = source.indexOf('*/', start)
    const close = end === -1 ? -1 : source.indexOf('}}', end)
    if (close === -1) fail(source, open, 'a comment that does not end')
    return close
  }
  for (let i = start; i < source.length; i += 1) {
    const char = source[i]
    if (char === '"' || char === '`') {
      const end = endOfString(source, i)
      if (end === -1) fail(source, i, 'a string that does not end')
      i = end
    } else if (char === '}' && source[i + 1] === '}') return i
  }
  return fail(source, open, '{{ without }}')
}

function endOfString(source: string, start: number): number {
  if (source[start] === '`') return source.indexOf('`', start + 1)
  for (let i = start + 1; i < source.length && source[i] !== '\n'; i += 1) {
    if (source[i] === '\\') i += 1
    else if (source[i] === '"') return i
  }
  return -1
}

/** Parses what stands between the braces. */
class PipelineParser {
  readonly #source: string
  readonly #text: string
  readonly #base: number
  #i = 0

  constructor(source: string, text: string, base: number) {
    this.#source = source
    this.#text = text
    this.#base = base
  }

  parse(mostDeclared: number): Pipeline {
    const pipeline = this.#pipeline(mostDeclared)
    this.#space()
    if (this.#i < this.#text.length) this.#fail(`unexpected ${JSON.stringify(this.#text.slice(this.#i, this.#i + 10))}`)
    return pipeline
  }

  #pipeline(mostDeclared: number): Pipeline {
    this.#space()
    const at = this.#base + this.#i
    const declares: string[] = []
    const declaration = /^(\$\w+)(?:\s*,\s*(\$\w+))?\s*(:?=)(?!=)/.exec(this.#text.slice(this.#i))
    if (declaration !== null) {
      for (const name of [declaration[1], declaration[2]]) if (name !== undefined) declares.push(name)
      if (declares.length > mostDeclared) this.#fail('two variables are declared outside of range')
      this.#i += declaration[0].length
    }
    const commands: Operand[][] = []
    for (;;) {
      const operands: Operand[] = []
      for (this.#space(); this.#i < this.#text.length && !/[|)]/.test(this.#text[this.#i] ?? ''); this.#space()) operands.push(this.#operand())
      if (operands.length === 0) this.#fail('a value is missing')
      commands.push(operands)
      if (this.#text[this.#i] !== '|') return { at, declares, assigns: declaration?.[3] === '=', commands }
      this.#i += 1
    }
  }

  #operand(): Operand {
    const at = this.#base + this.#i
    const rest = this.#text.slice(this.#i)
    const path = /^(\$\w*|)((?:\.[A-Za-z_]\w*)*)(\.(?!\w))?/.exec(rest)
    if (path !== null && path[0] !== '') {
      const [whole, variable = '', fields = '', dot] = path
      if (dot !== undefined && (variable !== '' || fields !== '')) this.#fail('a field name is missing after "."')
      this.#i += whole.length
      return { kind: 'path', at, from: variable === '' ? '.' : variable, fields: fields.split('.').slice(1) }
    }
    const number = /^[+-]?\d+(?![\w.])/.exec(rest)
    if (number !== null) {
      this.#i += number[0].length
      return { kind: 'literal', at, value: Number(number[0]) }
    }
    if (rest.startsWith('"') || rest.startsWith('`')) return this.#string(at)
    if (rest.startsWith('(')) {
      this.#i += 1
      const pipeline = this.#pipeline(0)
      if (this.#text[this.#i] !== ')') this.#fail('")" is missing')
      this.#i += 1
      const fields = /^(?:\.[A-Za-z_]\w*)*/.exec(this.#text.slice(this.#i))?.[0] ?? ''
      this.#i += fields.length
      return { kind: 'group', at, pipeline, fields: fields.split('.').slice(1) }
    }
    const word = /^[A-Za-z_]\w*/.exec(rest)?.[0]
    if (word === undefined) return this.#fail(`unexpected ${JSON.stringify(rest.slice(0, 10))}`)
    this.#i += word.length
    if (word === 'true' || word === 'false') return { kind: 'literal', at, value: word === 'true' }
    if (!Object.hasOwn(functions, word)) {
      fail(this.#source, at, `the function ${JSON.stringify(word)} is not supported in CNI configuration templates; these are: ${Object.keys(functions).join(', ')}`)
    }
    return { kind: 'function', at, name: word }
  }

  #string(at: number): Operand {
    const end = endOfString(this.#text, this.#i)
    if (end === -1) this.#fail('a string that does not end')
    const quoted = this.#text.slice(this.#i, end + 1)
    this.#i = end + 1
    if (quoted.startsWith('`')) return { kind: 'literal', at, value: quoted.slice(1, -1) }
    try {
      return { kind: 'literal', at, value: JSON.parse(quoted) as string }
    } catch {
      return fail(this.#source, at, `${quoted} is not a string that is understood here`)
    }
  }

  #space(): void {
    while (/\s/.test(this.#text[this.#i] ?? '')) this.#i += 1
  }

  #fail(what: string): never {
    return fail(this.#source, this.#base + this.#i, what)
  }
}

/** Arguments are checked by the functions; a wrong one throws and the caller adds the position. */
const functions: Readonly<Record<string, (...values: TemplateValue[]) => TemplateValue>> = {
  and: (...values) => values.find((value) => !isTrue(value)) ?? values.at(-1) ?? wrong('and needs a value'),
  or: (...values) => values.find(isTrue) ?? values.at(-1) ?? wrong('or needs a value'),
  not: (value, ...more) => (value === undefined || more.length > 0 ? wrong('not takes one value') : !isTrue(value)),
  len: (value) => {
    if (typeof value === 'string') return Buffer.byteLength(value)
    if (Array.isArray(value)) return value.length
    return wrong('len takes a list or a string')
  },
  index: (list, ...indexes) => {
    let value = list
    for (const index of indexes) {
      if (!Array.isArray(value) || typeof index !== 'number') return wrong('index takes a list and numbers')
      const found: TemplateValue | undefined = (value as readonly TemplateValue[])[index]
      if (found === undefined) return wrong(`index ${index} is out of range: the list has ${value.length} entries`)
      value = found
    }
    return value ?? wrong('index takes a list and numbers')
  },
  eq: (first, ...others) => (others.length === 0 ? wrong('eq takes at least two values') : others.some((other) => compare(first, other) === 0)),
  ne: (a, b) => compare(a, b) !== 0,
  lt: (a, b) => compare(a, b) < 0,
  le: (a, b) => compare(a, b) <= 0,
  gt: (a, b) => compare(a, b) > 0,
  ge: (a, b) => compare(a, b) >= 0,
  // Go puts a space between two operands when neither is a string.
  print: (...values) => values.reduce<string>((text, value, i) => text + (i > 0 && typeof value !== 'string' && typeof values[i - 1] !== 'string' ? ' ' : '') + printed(value), ''),
}

function wrong(message: string): never {
  throw new Error(message)
}

function compare(a: TemplateValue | undefined, b: TemplateValue | undefined): number {
  if (typeof a === 'string' && typeof b === 'string') return Buffer.compare(Buffer.from(a), Buffer.from(b))
  if (typeof a === 'number' && typeof b === 'number') return a - b
  if (typeof a === 'boolean' && typeof b === 'boolean') return Number(a) - Number(b)
  return wrong('values of different kinds cannot be compared')
}

function isTrue(value: TemplateValue): boolean {
  if (typeof value === 'object') return Object.keys(value).length > 0
  return Boolean(value)
}

function printed(value: TemplateValue): string {
  if (typeof value !== 'object') return String(value)
  if (isList(value)) return `[${value.map(printed).join(' ')}]`
  return `{${Object.values(value).map(printed).join(' ')}}`
}

function isList(value: TemplateValue): value is readonly TemplateValue[] {
  return Array.isArray(value)
}

interface Variable {
  readonly name: string
  value: TemplateValue
}

class Renderer {
  readonly #source: string
  #variables: Variable[]
  #out = ''

  constructor(source: string, data: TemplateValue) {
    this.#source = source
    this.#variables = [{ name: '$', value: data }]
  }

  render(nodes: readonly Node[]): string {
    const root = this.#variables[0]
    if (root !== undefined) this.#walk(nodes, root.value)
    return this.#out
  }

  #walk(nodes: readonly Node[], dot: TemplateValue): void {
    for (const node of nodes) {
      if (node.kind === 'text') this.#out += node.text
      else if (node.kind === 'print') this.#print(node.pipeline, dot)
      else this.#scoped(() => this.#block(node, dot))
    }
  }

  #print(pipeline: Pipeline, dot: TemplateValue): void {
    const value = this.#evaluate(pipeline, dot)
    if (pipeline.declares.length === 0) this.#out += printed(value)
    else this.#bind(pipeline, pipeline.declares[0], value)
  }

  #block(node: Exclude<Node, { kind: 'text' | 'print' }>, dot: TemplateValue): void {
    const value = this.#evaluate(node.pipeline, dot)
    if (node.kind === 'range') return this.#range(node, value, dot)
    this.#bind(node.pipeline, node.pipeline.declares[0], value)
    if (isTrue(value)) this.#walk(node.body, node.kind === 'with' ? value : dot)
    else this.#walk(node.otherwise, dot)
  }

  #range(node: Exclude<Node, { kind: 'text' | 'print' }>, value: TemplateValue, dot: TemplateValue): void {
    if (!isList(value)) fail(this.#source, node.pipeline.at, 'range needs a list')
    if (value.length === 0) return this.#walk(node.otherwise, dot)
    const { declares } = node.pipeline
    for (const [i, element] of value.entries()) {
      this.#scoped(() => {
        if (declares.length === 2) this.#bind(node.pipeline, declares[0], i)
        this.#bind(node.pipeline, declares.at(-1), element)
        this.#walk(node.body, element)
      })
    }
  }

  #bind(pipeline: Pipeline, name: string | undefined, value: TemplateValue): void {
    if (name === undefined) return
    if (!pipeline.assigns) {
      this.#variables.push({ name, value })
      return
    }
    const variable = this.#variables.findLast((candidate) => candidate.name === name)
    if (variable === undefined) fail(this.#source, pipeline.at, `the variable ${name} is not declared`)
    variable.value = value
  }

  /** Variables live until the end of their block. */
  #scoped(work: () => void): void {
    const depth = this.#variables.length
    work()
    this.#variables.length = depth
  }

  #evaluate(pipeline: Pipeline, dot: TemplateValue): TemplateValue {
    let piped: TemplateValue | undefined
    for (const command of pipeline.commands) {
      const [head, ...rest] = command
      if (head === undefined) fail(this.#source, pipeline.at, 'a value is missing')
      const args = rest.map((operand) => this.#operand(operand, dot))
      if (piped !== undefined) args.push(piped)
      if (head.kind === 'function') piped = this.#call(head, args)
      else if (args.length > 0) fail(this.#source, head.at, 'only a function takes arguments')
      else piped = this.#operand(head, dot)
    }
    return piped ?? fail(this.#source, pipeline.at, 'a value is missing')
  }

  #call(operand: Extract<Operand, { kind: 'function' }>, args: TemplateValue[]): TemplateValue {
    const implementation = functions[operand.name]
    if (implementation === undefined) fail(this.#source, operand.at, `the function ${operand.name} is not supported`)
    try {
      return implementation(...args)
    } catch (error) {
      return fail(this.#source, operand.at, error instanceof Error ? error.message : String(error))
    }
  }

  #operand(operand: Operand, dot: TemplateValue): TemplateValue {
    if (operand.kind === 'literal') return operand.value
    if (operand.kind === 'function') return this.#call(operand, [])
    if (operand.kind === 'group') return this.#fields(this.#evaluate(operand.pipeline, dot), operand.fields, operand.at)
    if (operand.from === '.') return this.#fields(dot, operand.fields, operand.at)
    const variable = this.#variables.findLast(({ name }) => name === operand.from)
    if (variable === undefined) fail(this.#source, operand.at, `the variable ${operand.from} is not declared`)
    return this.#fields(variable.value, operand.fields, operand.at)
  }

  #fields(start: TemplateValue, fields: readonly string[], at: number): TemplateValue {
    let value = start
    for (const field of fields) {
      const known = typeof value === 'object' && !isList(value) ? value : {}
      const found: TemplateValue | undefined = Object.hasOwn(known, field) ? known[field] : undefined
      if (found === undefined) {
        const names = Object.keys(known).map((name) => `.${name}`).join(', ')
        fail(this.#source, at, names === '' ? `there is no field .${field} here` : `there is no field .${field}; these are: ${names}`)
      }
      value = found
    }
    return value
  }
}
