//! A transformer decoder, with the encoder that it reads where there is one, in three stages, open to taps at every named place.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor};

use super::block::{Block, Cross};
use super::parts::Parts;
use super::past::Past;
use super::spec::{BlockShape, DecoderSpec, Positions};
use crate::error::{Error, Result};
use crate::model::layers::attention::{causal, padding, real, weigh};
use crate::model::layers::matrix::{Linear, Matrix};
use crate::model::layers::norm::{Norm, if_there};
use crate::model::layers::rotary::Angles;
use crate::model::layers::{at_least_f32, in_type, project, soft_cap};
use crate::model::tap::{Place, Role, Row, Site, Span, Stack, Tap, Weight};
use crate::model::tokens::Tokens;

/// A transformer decoder. Its weights never change once it is loaded; on an autodiff device they can be trained.
///
/// Over an encoder, a row holds what the encoder reads and behind it what the decoder does ([`crate::model::tokens::BEGIN`]), and blocks are
/// counted from the encoder's lowest on: whoever runs the stages sees rows and layers, and need not ask which kind it is.
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[vocabulary, width]`
    pub embedding: Matrix,
    /// `[offset + context, width]`, where positions are learned.
    pub positions: Option<Param<Tensor<2>>>,
    /// `[buckets, heads]`, where scores depend on distances.
    pub distances: Option<Param<Tensor<2>>>,
    /// After the embeddings, where there is one.
    pub embedding_norm: Option<Norm>,
    /// The encoder.
    pub source: Option<Source>,
    /// The blocks, lowest first.
    pub blocks: Vec<Block>,
    /// The norm before the head, where there is one.
    pub norm: Option<Norm>,
    /// What a classifier makes of the first cell before its head reads it: `tanh(x W + b)`.
    pub pooler: Option<Linear>,
    /// `[width, outputs]`; nothing where the head is the embedding, transposed.
    pub head: Option<Matrix>,
    /// `[outputs]`
    pub head_bias: Option<Param<Tensor<1>>>,
    /// The architecture.
    #[module(skip)]
    pub spec: DecoderSpec,
}

/// The encoder of an encoder-decoder, or of a classifier.
#[derive(Module, Debug)]
pub struct Source {
    /// `[kinds, width]`, where kinds of text are told apart.
    pub kinds: Option<Param<Tensor<2>>>,
    /// `[offset + context, width]`, where positions are learned.
    pub positions: Option<Param<Tensor<2>>>,
    /// `[buckets, heads]`, where scores depend on distances.
    pub distances: Option<Param<Tensor<2>>>,
    /// After the embeddings, where there is one.
    pub embedding_norm: Option<Norm>,
    /// The blocks, lowest first.
    pub blocks: Vec<Block>,
    /// The norm of what the decoder reads, where there is one.
    pub norm: Option<Norm>,
}

/// A block in its place: in which stack, at which of its layers, over which cells.
struct InPlace<'a> {
    block: &'a Block,
    stack: Stack,
    layer: usize,
    /// The number of the block in a pass, under which a past holds its keys and values.
    number: usize,
    span: &'a Span,
    geometry: &'a Geometry,
}

/// What the encoder made, and which of its cells are whose.
struct Made<'a> {
    /// `[batch, tokens, width]`; nothing in a later part of a text, for which a past has its keys and values.
    states: Option<&'a Tensor<3>>,
    span: &'a Span,
}

/// What all layers of a kind share in one pass: rotary angles of the batch's cells and who sees whom.
struct Geometry {
    angles: Option<Angles>,
    /// `[batch or 1, 1, tokens, past + tokens]`
    mask: Option<Tensor<4>>,
}

/// Of layers that see all positions to the left, and of those that see the last ones, where there are any.
struct Geometries {
    global: Geometry,
    local: Option<Geometry>,
}

impl Geometries {
    fn new(decoder: &Decoder, span: &Span, seen: &[Vec<Option<usize>>], (device, dtype): (&Device, DType)) -> Self {
        let spec = &decoder.spec;
        // Rows that stand alike share one mask and one table of angles.
        let stands = |row: &Row| (row.start, row.len, row.unseen);
        let alike = span.rows.windows(2).all(|pair| stands(&pair[0]) == stands(&pair[1]))
            && seen.windows(2).all(|pair| pair[0] == pair[1]);
        let rows = if alike { 1 } else { span.rows.len() };
        let place = (device, dtype);
        let angles = match &spec.positions {
            Positions::Rotary(rotary) => Some(rotary.angles(span, rows, device, dtype)),
            Positions::Learned { .. } | Positions::Relative(_) => None,
        };
        let local = spec.attention.local.as_ref().map(|local| Geometry {
            angles: match &local.rotary {
                Some(rotary) => Some(rotary.angles(span, rows, device, dtype)),
                None => angles.clone(),
            },
            mask: causal(span, seen, rows, Some(local.window), place),
        });
        let mut mask = causal(span, seen, rows, None, place);
        if let (Positions::Relative(relative), Some(table)) = (&spec.positions, &decoder.distances) {
            let positions = (0..rows).map(|row| {
                let new = (0..span.width).map(|cell| span.position(row, cell).unwrap_or(0));
                (new.clone().collect(), seen[row].iter().map(|cell| cell.unwrap_or(0)).chain(new).collect())
            });
            let bias = relative.bias(table.val(), &positions.collect::<Vec<_>>(), false, device).cast(dtype);
            mask = Some(match mask {
                Some(mask) => mask + bias,
                None => bias,
            });
        }
        Geometries { global: Geometry { angles, mask }, local }
    }

    fn of(&self, spec: &DecoderSpec, layer: usize) -> &Geometry {
        self.local.as_ref().filter(|_| spec.is_local(layer)).unwrap_or(&self.global)
    }
}

impl Source {
    /// Every cell sees all real ones.
    fn geometry(&self, spec: &DecoderSpec, span: &Span, device: &Device, dtype: DType) -> Geometry {
        let mut mask = padding(span, device, dtype);
        if let (Positions::Relative(relative), Some(table)) = (&spec.positions, &self.distances) {
            let positions: Vec<usize> = (0..span.width).collect();
            let bias = relative.bias(table.val(), &[(positions.clone(), positions)], true, device).cast(dtype);
            mask = Some(match mask {
                Some(mask) => mask + bias,
                None => bias,
            });
        }
        Geometry { angles: None, mask }
    }
}

impl Decoder {
    /// The device the weights live on.
    pub fn device(&self) -> Device {
        self.embedding.device()
    }

    /// The element type of the weights.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// The linear map of a weight's name.
    ///
    /// # Errors
    /// The model has no such weight.
    pub fn linear(&self, at: Weight) -> Result<&Linear> {
        let blocks = match at.stack {
            Stack::Decoder => Some(&self.blocks),
            Stack::Encoder => self.source.as_ref().map(|source| &source.blocks),
        };
        let block = blocks.and_then(|blocks| blocks.get(at.layer));
        block.and_then(|block| block.linear(at.role)).ok_or_else(|| self.no_such(at))
    }

    /// The same decoder with one matrix and its bias replaced. The other weights are shared.
    ///
    /// # Errors
    /// The model has no such weight.
    pub fn with_linear(mut self, at: Weight, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Result<Self> {
        let missing = self.no_such(at);
        let blocks = match at.stack {
            Stack::Decoder => Some(&mut self.blocks),
            Stack::Encoder => self.source.as_mut().map(|source| &mut source.blocks),
        };
        let block = blocks.and_then(|blocks| blocks.get_mut(at.layer));
        let linear = block.and_then(|block| block.linear_mut(at.role)).ok_or(missing)?;
        *linear = Linear { weight: Matrix::held(weight), bias: bias.map(Param::from_tensor) };
        Ok(self)
    }

    /// Puts blocks in the place of the topmost ones, the decoder's above the encoder's.
    ///
    /// # Panics
    /// More blocks than there are.
    pub fn replace_top(&mut self, blocks: &[Block]) {
        let own = self.source.iter_mut().flat_map(|source| &mut source.blocks).chain(&mut self.blocks);
        let own: Vec<&mut Block> = own.collect();
        let first = own.len() - blocks.len();
        own.into_iter().skip(first).zip(blocks).for_each(|(own, block)| own.clone_from(block));
    }

    fn no_such(&self, at: Weight) -> Error {
        let gate = if self.spec.mlp.gated { "mlp.gate, " } else { "" };
        let own = format!("attention.query, attention.key, attention.value, attention.out, {gate}mlp.up, mlp.down");
        if self.spec.labels().is_some() {
            let layers = self.spec.source_layers();
            return Error::Config(format!(
                "the model has no weight {at}; it has encoder layers 0 to {} with {own}",
                layers - 1
            ));
        }
        let (encoder, cross) = match &self.spec.source {
            Some(source) => (
                format!("encoder layers 0 to {} and ", source.layers - 1),
                " and, in the decoder, cross.query, cross.key, cross.value, cross.out",
            ),
            None => (String::new(), ""),
        };
        Error::Config(format!(
            "the model has no weight {at}; it has {encoder}decoder layers 0 to {} with {own}{cross}",
            self.spec.layers - 1
        ))
    }

    /// First stage: tokens to the input of the first block, `[batch, tokens, width]`. Padded cells hold token 0.
    ///
    /// # Errors
    /// A token outside the vocabulary, or a position outside the context.
    pub fn embed(&self, tokens: &Tokens, tap: &mut dyn Tap) -> Result<Tensor<3>> {
        let spec = &self.spec;
        tokens.check(spec.vocabulary, spec.context, spec.source.is_some())?;
        let span = tokens.span();
        let begin = spec.source.as_ref().map_or(0, |source| source.begin);
        let indices = Tensor::<1, Int>::from_data(tokens.padded_ids(begin).as_slice(), &self.device());
        let mut hidden = self.embedding.rows(indices).reshape([span.rows.len(), span.width, spec.width]);
        if spec.embedding_scale != 1.0 {
            hidden = hidden.mul_scalar(spec.embedding_scale);
        }
        let Some(source) = &self.source else {
            return Ok(self.placed(hidden, span, Stack::Decoder, (&self.positions, &self.embedding_norm), tap));
        };
        let parts = Parts::of(span);
        let read = parts.take(Stack::Encoder, &hidden).map(|read| {
            let read = match &source.kinds {
                Some(kinds) => read + kinds.val().narrow(0, 0, 1).unsqueeze(),
                None => read,
            };
            let own = (&source.positions, &source.embedding_norm);
            self.placed(read, &parts.read, Stack::Encoder, own, tap)
        });
        let written = parts.take(Stack::Decoder, &hidden).map(|written| {
            let own = (&self.positions, &self.embedding_norm);
            self.placed(written, &parts.written, Stack::Decoder, own, tap)
        });
        Ok(parts.join(read, written).unwrap_or(hidden))
    }

    /// Embeddings with what a stack adds to them.
    fn placed(
        &self,
        mut hidden: Tensor<3>,
        span: &Span,
        stack: Stack,
        (positions, norm): (&Option<Param<Tensor<2>>>, &Option<Norm>),
        tap: &mut dyn Tap,
    ) -> Tensor<3> {
        if let (Some(positions), Positions::Learned { offset }) = (positions, &self.spec.positions) {
            let first = |row: usize| if stack == Stack::Decoder { span.rows[row].text.source } else { 0 };
            let cells = (0..span.rows.len()).flat_map(|row| (0..span.width).map(move |cell| (row, cell)));
            let position = |(row, cell)| span.position(row, cell).map_or(0, |position| position - first(row));
            let indices: Vec<i64> = cells.map(|cell| (offset + position(cell)) as i64).collect();
            let indices = Tensor::<1, Int>::from_data(indices.as_slice(), &self.device());
            hidden = hidden.clone() + positions.val().select(0, indices).reshape(hidden.dims());
        }
        tap.activation(Site { stack, layer: 0, place: Place::Embedding }, span, if_there(norm, hidden))
    }

    /// Second stage: the residual stream through the blocks of `layers`, `[batch, tokens, width]`. Over an encoder its blocks are counted first.
    ///
    /// With a `past`, the cells also see the positions it holds, and this pass's keys and values are appended to it.
    ///
    /// # Errors
    /// A past that does not fit the batch or the layers; none where a later part of an encoder-decoder's text wants it.
    pub fn blocks(
        &self,
        hidden: Tensor<3>,
        layers: Range<usize>,
        span: &Span,
        past: Option<&mut Past>,
        tap: &mut dyn Tap,
    ) -> Result<Tensor<3>> {
        if layers.is_empty() {
            return Ok(hidden);
        }
        let Some(source) = &self.source else { return self.decode(hidden, layers, span, None, past, tap) };
        let (parts, depth) = (Parts::of(span), source.blocks.len());
        let mut read = parts.take(Stack::Encoder, &hidden);
        let mut written = parts.take(Stack::Decoder, &hidden);
        if let Some(read) = &mut read {
            let mut known: Option<(DType, Geometry)> = None;
            for layer in layers.start.min(depth)..layers.end.min(depth) {
                let block = &source.blocks[layer];
                let dtype = block.dtype();
                let geometry = match known.take().filter(|(of, _)| *of == dtype) {
                    Some((_, geometry)) => geometry,
                    None => source.geometry(&self.spec, &parts.read, &self.device(), dtype),
                };
                let span = &parts.read;
                let place = InPlace { block, stack: Stack::Encoder, layer, number: layer, span, geometry: &geometry };
                *read = self.block(in_type(read.clone(), dtype), &place, None, None, tap);
                known = Some((dtype, geometry));
            }
        }
        if let Some(cells) = written.take() {
            let above = layers.start.max(depth)..layers.end.max(depth);
            let states = read.clone().filter(|_| !above.is_empty()).map(|read| if_there(&source.norm, read));
            let held = |past: &&mut Past| above.clone().all(|number| past.crossed(number).is_some());
            if states.is_none() && !above.is_empty() && !past.as_ref().is_some_and(held) {
                let message = "a later part of a text wants a past with what the encoder made of its beginning";
                return Err(Error::Input(message.into()));
            }
            let made = Made { states: states.as_ref(), span: &parts.read };
            written = Some(match above.is_empty() {
                true => cells,
                false => self.decode(cells, above, &parts.written, Some(&made), past, tap)?,
            });
        }
        Ok(parts.join(read, written).unwrap_or(hidden))
    }

    /// Appends the keys and values of cells at one layer to a past, and computes nothing else of it: for cells whose own output nobody reads, as below the head
    /// all but those that it looks at.
    ///
    /// # Errors
    /// A past that does not fit the batch; a model with an encoder.
    pub fn remember(
        &self,
        hidden: Tensor<3>,
        layer: usize,
        span: &Span,
        past: &mut Past,
        tap: &mut dyn Tap,
    ) -> Result<()> {
        if self.source.is_some() {
            return Err(Error::Input(
                "keys and values alone are of a causal stack, and this model has an encoder".into(),
            ));
        }
        let (block, seen) = (&self.blocks[layer], past.cells(layer..layer + 1, span)?);
        let dtype = block.dtype();
        let geometries = Geometries::new(self, span, &seen, (&self.device(), dtype));
        let geometry = geometries.of(&self.spec, layer);
        let place = InPlace { block, stack: Stack::Decoder, layer, number: layer, span, geometry };
        let input = self.attention_input(&in_type(hidden, dtype), block);
        let (key, value) = self.keys_and_values(&input, &place, tap);
        past.append(layer, span, key, value);
        Ok(())
    }

    /// The decoder's cells through its blocks, which a pass counts behind the encoder's.
    fn decode(
        &self,
        mut hidden: Tensor<3>,
        layers: Range<usize>,
        span: &Span,
        made: Option<&Made<'_>>,
        mut past: Option<&mut Past>,
        tap: &mut dyn Tap,
    ) -> Result<Tensor<3>> {
        let seen = match &past {
            Some(past) => past.cells(layers.clone(), span)?,
            None => vec![vec![]; span.rows.len()],
        };
        let below = self.spec.source_layers();
        let mut known: Option<(DType, Geometries)> = None;
        for number in layers {
            let layer = number - below;
            let block = &self.blocks[layer];
            let dtype = block.dtype();
            let geometries = match known.take().filter(|(of, _)| *of == dtype) {
                Some((_, geometries)) => geometries,
                None => Geometries::new(self, span, &seen, (&self.device(), dtype)),
            };
            let geometry = geometries.of(&self.spec, layer);
            let place = InPlace { block, stack: Stack::Decoder, layer, number, span, geometry };
            hidden = self.block(in_type(hidden, dtype), &place, made, past.as_deref_mut(), tap);
            known = Some((dtype, geometries));
        }
        Ok(hidden)
    }

    fn block(
        &self,
        hidden: Tensor<3>,
        at: &InPlace<'_>,
        made: Option<&Made<'_>>,
        mut past: Option<&mut Past>,
        tap: &mut dyn Tap,
    ) -> Tensor<3> {
        let (block, span, shape) = (at.block, at.span, self.spec.block);
        let site = |place| Site { stack: at.stack, layer: at.layer, place };
        let post = shape == BlockShape::PostNorm;

        let input = self.attention_input(&hidden, block);
        let attention = self.attention(&input, at, past.as_deref_mut(), tap);
        let attention = tap.activation(site(Place::AttentionOut), span, attention);
        let attention = if_there(&block.attention_post_norm, attention);

        // Side by side with attention, the MLP reads what attention read.
        let (mut hidden, beside) = match shape {
            BlockShape::Parallel => (hidden.clone() + attention, Some(if_there(&block.mlp_norm, hidden))),
            BlockShape::ParallelOneNorm => (hidden + attention, Some(input)),
            BlockShape::PostNorm => (block.attention_norm.forward(hidden + attention), None),
            BlockShape::PreNorm | BlockShape::PreAndPostNorm => (hidden + attention, None),
        };
        if let (Some(cross), Some(made)) = (&block.cross, made) {
            let asks = if post { hidden.clone() } else { cross.norm.forward(hidden.clone()) };
            let sum = hidden + self.cross(&asks, cross, at, made, past, tap);
            hidden = if post { cross.norm.forward(sum) } else { sum };
        }
        let input = match beside {
            Some(input) => input,
            None if post => hidden.clone(),
            None => if_there(&block.mlp_norm, hidden.clone()),
        };
        let value = self.mlp(&input, at, tap);
        let value = tap.activation(site(Place::MlpOut), span, value);
        let value = if_there(&block.mlp_post_norm, value);
        let hidden = hidden + value;
        let hidden = if post { if_there(&block.mlp_norm, hidden) } else { hidden };
        tap.activation(site(Place::BlockOut), span, hidden)
    }

    /// Attention of the decoder's cells over what the encoder made, output projection included.
    fn cross(
        &self,
        asks: &Tensor<3>,
        cross: &Cross,
        at: &InPlace<'_>,
        made: &Made<'_>,
        past: Option<&mut Past>,
        tap: &mut dyn Tap,
    ) -> Tensor<3> {
        let spec = &self.spec.attention;
        let (shared, width) = (spec.key_value_heads, spec.head_width);
        let weight = |role| Weight { stack: at.stack, layer: at.layer, role };
        let query = project(&cross.query, weight(Role::CrossQuery), at.span, asks, tap);
        let [batch, tokens, _] = query.dims();
        let query = query.mul_scalar(spec.scale).reshape([batch, tokens, spec.heads, width]);
        let query = query.swap_dims(1, 2).reshape([batch, shared, spec.heads / shared * tokens, width]);
        let heads = |x: Tensor<3>| {
            let [batch, tokens, _] = x.dims();
            x.reshape([batch, tokens, shared, width]).swap_dims(1, 2)
        };
        let mut lengths: Vec<usize> = made.span.rows.iter().map(|row| row.len).collect();
        let [key, value] = match (made.states, &past) {
            (Some(states), _) => {
                let states = in_type(states.clone(), at.block.dtype());
                let key = project(&cross.key, weight(Role::CrossKey), made.span, &states, tap);
                let value = project(&cross.value, weight(Role::CrossValue), made.span, &states, tap);
                let both = [heads(key), heads(value)];
                if let Some(past) = past {
                    past.keep_crossed(at.number, &lengths, both.clone());
                }
                both
            }
            (None, Some(past)) => match past.crossed(at.number) {
                Some((both, sources)) => {
                    lengths = sources.to_vec();
                    both
                }
                // Refused before the first block.
                None => return asks.clone().zeros_like(),
            },
            (None, None) => return asks.clone().zeros_like(),
        };
        let mask = real(&lengths, key.dims()[2], &self.device(), at.block.dtype());
        let mixed = weigh([query, key, value], spec.heads, spec.cap, mask);
        project(&cross.out, weight(Role::CrossOut), at.span, &mixed, tap)
    }

    /// What attention reads of the stream.
    fn attention_input(&self, hidden: &Tensor<3>, block: &Block) -> Tensor<3> {
        match self.spec.block {
            BlockShape::PostNorm => hidden.clone(),
            _ => block.attention_norm.forward(hidden.clone()),
        }
    }

    /// Keys, turned to their positions, and values of cells, `[batch, key-value heads, tokens, head width]` each.
    fn keys_and_values(&self, normed: &Tensor<3>, place: &InPlace<'_>, tap: &mut dyn Tap) -> (Tensor<4>, Tensor<4>) {
        let InPlace { block, stack, layer, span, geometry, .. } = *place;
        let spec = &self.spec.attention;
        let at = |role| Weight { stack, layer, role };
        let key = project(&block.key, at(Role::Key), span, normed, tap);
        let value = project(&block.value, at(Role::Value), span, normed, tap);
        let key = match &block.key_norm {
            Some(norm) => norm.forward_heads(key),
            None => key,
        };
        let [batch, tokens, _] = key.dims();
        let each = [batch, tokens, spec.key_value_heads, spec.head_width];
        let key = key.reshape(each);
        let key = match &geometry.angles {
            Some(angles) => angles.turn(key),
            None => key,
        };
        (key.swap_dims(1, 2), value.reshape(each).swap_dims(1, 2))
    }

    /// Attention over the cells and the past, output projection included.
    fn attention(
        &self,
        normed: &Tensor<3>,
        place: &InPlace<'_>,
        past: Option<&mut Past>,
        tap: &mut dyn Tap,
    ) -> Tensor<3> {
        let InPlace { block, stack, layer, number, span, geometry } = *place;
        let spec = &self.spec.attention;
        let at = |role| Weight { stack, layer, role };
        let query = project(&block.query, at(Role::Query), span, normed, tap);
        let query = match &block.query_norm {
            Some(norm) => norm.forward_heads(query),
            None => query,
        };
        let (key, value) = self.keys_and_values(normed, place, tap);

        let [batch, tokens, _] = query.dims();
        let (shared, width) = (spec.key_value_heads, spec.head_width);
        let group = spec.heads / shared;
        let query = query.mul_scalar(spec.scale).reshape([batch, tokens, spec.heads, width]);
        let query = match &geometry.angles {
            Some(angles) => angles.turn(query),
            None => query,
        };
        let query = query.swap_dims(1, 2).reshape([batch, shared, group * tokens, width]);
        let (key, value) = match past {
            Some(past) => past.append(number, span, key, value),
            None => (key, value),
        };
        let mixed = weigh([query, key, value], spec.heads, spec.cap, geometry.mask.clone());
        project(&block.out, at(Role::Out), span, &mixed, tap)
    }

    fn mlp(&self, input: &Tensor<3>, place: &InPlace<'_>, tap: &mut dyn Tap) -> Tensor<3> {
        let InPlace { block, stack, layer, span, .. } = *place;
        let spec = &self.spec.mlp;
        let at = |role| Weight { stack, layer, role };
        let up = project(&block.up, at(Role::MlpUp), span, input, tap);
        let key = match &block.gate {
            Some(gate) => spec.activation.apply(project(gate, at(Role::MlpGate), span, input, tap)) * up,
            None => spec.activation.apply(up),
        };
        let site = Site { stack, layer, place: Place::MlpHidden };
        let key = tap.activation(site, span, key);
        project(&block.down, at(Role::MlpDown), span, &key, tap)
    }

    /// Third stage: logits `[positions, outputs]` at the given (row, cell) pairs only. A classifier reads the row's first cell, whichever is asked for.
    pub fn head(&self, hidden: Tensor<3>, positions: &[(usize, usize)]) -> Tensor<2> {
        self.finished(self.outputs(self.read(hidden, positions)))
    }

    /// [`Decoder::head`] for a loss whose gradient at the logits is put in by hand: `gradient` is given the logits, apart from any graph, and gives
    /// `∂L/∂logits [positions, outputs]` and whatever else it finds. What comes back has the loss's gradient, and is another number.
    ///
    /// # Errors
    /// What `gradient` says.
    pub fn head_with_gradient<T>(
        &self,
        hidden: Tensor<3>,
        positions: &[(usize, usize)],
        gradient: impl FnOnce(Tensor<2>) -> Result<(Tensor<2>, T)>,
    ) -> Result<(Tensor<1>, T)> {
        let read = self.read(hidden, positions);
        if let Matrix::Held(_) = self.head.as_ref().unwrap_or(&self.embedding) {
            let logits = self.finished(self.outputs(read));
            let (towards, found) = gradient(logits.clone().inner())?;
            return Ok(((logits * towards).sum(), found));
        }
        // In one graph with what is below, the whole of a stored matrix would be kept in its cast form as long as the graph: its product and
        // the way back through it are made apart.
        let outputs = Tensor::from_inner(self.outputs(read.clone().inner())).require_grad();
        let logits = self.finished(outputs.clone());
        let (towards, found) = gradient(logits.clone().inner())?;
        let gradients = (logits * towards).sum().backward();
        let towards = outputs.grad(&gradients).unwrap_or_else(|| outputs.inner().zeros_like());
        let towards = match &self.head {
            Some(head) => head.product_transposed(towards),
            None => self.embedding.product(towards),
        };
        Ok(((read * towards).sum(), found))
    }

    /// What the head reads at some cells, `[positions, width]`.
    fn read(&self, hidden: Tensor<3>, positions: &[(usize, usize)]) -> Tensor<2> {
        let [rows, cells, width] = hidden.dims();
        let read_at = |&(row, cell): &(usize, usize)| row * cells + if self.spec.labels().is_some() { 0 } else { cell };
        let index: Vec<i64> = positions.iter().map(|at| read_at(at) as i64).collect();
        let index = Tensor::<1, Int>::from_data(index.as_slice(), &self.device());
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let dtype = self.norm.as_ref().map_or(head.dtype(), |norm| norm.gamma.val().dtype());
        let read = in_type(hidden.reshape([rows * cells, width]).select(0, index), dtype);
        let mut read = if_there(&self.norm, read.unsqueeze_dim(0)).squeeze_dim::<2>(0);
        if let Some(pooler) = &self.pooler {
            read = pooler.forward(in_type(read, pooler.weight.dtype())).tanh();
        }
        if self.spec.head.scale != 1.0 { read.mul_scalar(self.spec.head.scale) } else { read }
    }

    fn outputs(&self, read: Tensor<2>) -> Tensor<2> {
        match &self.head {
            Some(head) => head.product(read),
            None => self.embedding.product_transposed(read),
        }
    }

    fn finished(&self, outputs: Tensor<2>) -> Tensor<2> {
        let logits = match &self.head_bias {
            Some(bias) => outputs + bias.val().unsqueeze(),
            None => outputs,
        };
        soft_cap(at_least_f32(logits), self.spec.head.cap)
    }

    /// Whether some of its blocks, as a pass counts them, stay in their file.
    pub fn in_file(&self, layers: Range<usize>) -> bool {
        let own = self.source.iter().flat_map(|source| &source.blocks).chain(&self.blocks);
        own.skip(layers.start).take(layers.len()).any(|block| matches!(block.up.weight, Matrix::Stored(_)))
    }

    /// The same with the matrices of its topmost blocks, from number `lowest` of a pass on, in memory: what is run again and again, with a graph over it,
    /// is cast once.
    pub fn in_memory_from(mut self, lowest: usize) -> Self {
        let own = self.source.iter_mut().flat_map(|source| &mut source.blocks).chain(&mut self.blocks);
        own.skip(lowest).for_each(|block| *block = block.clone().in_memory());
        self
    }
}
