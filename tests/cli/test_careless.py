"""What a careless user types, over all commands: one line that says what was expected, what came
and what to do; the house's exit code; no traceback; and nothing is written or lost.

A row is `command line | words that the message holds`; "! " before it where the request was right
and its work failed (exit code 1 instead of 2). All run in one folder, which stays as it is.
"""

import contextlib
import io
import os
import shlex
import shutil
import zipfile

import h5py
import numpy as np
import pytest

import tinyft as ft
from tinyft.cli.main import main

RUN = "runs/pictures-cifar_resnet20-1"
MOST = 500  # characters of a message: no lists of shapes
NEVER = ("Traceback", "an error in tinyft", "<class", "NoneType", "object at 0x")

WEIGHTS = """
! weights verify keras.h5 | another program wrote it (Keras, h5py)
! weights verify model.keras | it is a Keras model
! weights verify photos.zip | it is an archive: give a checkpoint of PyTorch or safetensors
! weights verify arrays.npz | it is arrays of NumPy (npz)
weights verify arrays.npy | it is an array of NumPy
weights verify page.pth | it is a web page; download the file itself
weights verify indented.h5 | it is a web page
weights verify pointer.pth | it is a Git LFS pointer to them; `git lfs pull`
weights verify empty.pth | it is empty; get it again
weights verify answer.json | it is JSON
weights verify pictures/cat/0.png | it is a picture; pictures come as DIR
weights verify packed.gz | it is packed by gzip; unpack it first
weights verify words.txt | nor safetensors: it begins with b'weights,'
weights verify pictures | pictures is no file; expected one of weights
weights verify smal.h5 | smal.h5 is no file; expected one of weights; did you mean small.h5?
weights fetch resnt18 | did you mean resnet18
weights fetch timm/resnet50.a1_in1 | did you mean timm/resnet50.a1_in1k
weights fetch resnet10s.h5 | no published weights are called so
weights lst | invalid choice: 'lst'; did you mean list?
weights | ACTION
weights verify | required: FILE
weights convert page.pth out.h5 | it is a web page
weights convert empty.pth out.h5 | it is empty
weights convert arrays.npz out.h5 | arrays of NumPy
weights convert gone.pth out.h5 | gone.pth: No such file
weights export page.pth out.safetensors | it is a web page
weights export pictures out.safetensors | pictures is no run
"""

COMMANDS = """
finetun | invalid choice: 'finetun'; did you mean finetune?
train pictures | invalid choice: 'train'
evalute run pictures | did you mean evaluate?
lrfind pictures | did you mean lr-find?
--versoin | unrecognized arguments: --versoin; did you mean --version?
finetune pictures --epoch 3 | unrecognized arguments: --epoch 3; did you mean --epochs?
finetune pictures --batchsize 3 | did you mean --batch-size?
finetune pictures --weight none | did you mean --weights?
predict RUN pictures/cat/0.png --bset | did you mean --best?
finetune pictures more | unrecognized arguments: more
finetune https://example.com/photos | https://example.com/photos is an address
finetune pictures --weights=http://example.com/resnet18.pth | is an address
predict RUN https://example.com/cat.jpg | download what is there
"""

TRAINING = """
finetune pictures --lr 1e9 | often from 0.0001 to 0.1, and at most 100, got '1e9'
finetune pictures --lr -1 | expected a learning rate above 0
finetune pictures --arch resnet81 --weights none | got 'resnet81'; did you mean resnet18?
finetune pictures --arch ResNet-18 | did you mean resnet18?
finetune pictures --weights small.h5 --arch resnet50 | is a cifar_resnet20, not a resnet50
finetune pictures --weights resnet18 --arch resnet50 | resnet18 is a resnet18, not a resnet50; give
finetune pictures --weights small.safetensors --arch resnet18 | cifar_resnet20, not a resnet18
finetune picture | did you mean pictures?
finetune links | links to folders are not followed
finetune one | files outside a class folder: 1; is it one class of several?
"""

MORE = r"""
finetune pictures --lr fast | expected a learning rate above 0, often from 0.0001 to 0.1, and at
finetune pictures --lr 0,01 | expected a learning rate above 0, often from 0.0001 to 0.1, and at
finetune pictures --lr | expected one argument
finetune pictures --epochs 2.5 | expected a whole number from 0 to 10,000, got '2.5'
finetune pictures --epochs three | expected a whole number from 0 to 10,000, got 'three'
finetune pictures --epochs -1 | expected a whole number from 0 to 10,000, got '-1'
finetune pictures --epochs 1e3 | expected a whole number from 0 to 10,000, got '1e3'
finetune pictures --freeze-epochs -2 | expected a whole number from 0 to 10,000, got '-2'
finetune pictures --size big | expected a whole number >= 1, got 'big'
finetune pictures --size 0 | expected a whole number >= 1, got '0'
finetune pictures --size 224x224 | expected a whole number >= 1, got '224x224'
finetune pictures --size 5 --weights none --arch cifar_resnet20 | size must be a whole number of
finetune pictures --size 1000000 --weights none --arch cifar_resnet20 | preprocess: resize is
finetune pictures --batch-size 0 | expected a whole number >= 1, got '0'
finetune pictures --batch-size -4 | expected a whole number >= 1, got '-4'
finetune pictures --batch-size 1 --weights none --arch cifar_resnet20 | a training batch needs at
finetune pictures --head none | invalid choice: 'none' (choose from 'fastai', 'linear')
finetune pictures --head Linear | invalid choice: 'Linear'; did you mean linear
finetune pictures --head-init mean | invalid choice: 'mean'; did you mean means
finetune pictures --recipe means-and-miror | did you mean means-and-mirror?
finetune pictures --recipe means-and-mirror --head fastai | has --head linear; leave --head
finetune pictures --head-init means --weights small.h5 | --head-init means is for --head linear:
finetune pictures --head linear --dropout 0.3 --weights small.h5 | --dropout 0.3 is for --head
finetune pictures --bn freeze | invalid choice: 'freeze'; did you mean frozen
finetune pictures --seed -1 | expected a whole number >= 0, got '-1'
finetune pictures --seed random | expected a whole number >= 0, got 'random'
finetune pictures --augment mixup | invalid choice: 'mixup' (choose from 'default', 'crop',
finetune pictures --augment crop --no-augment | not allowed with argument --augment
finetune pictures --valid-fraction 1 | expected a number between 0 and 1, got '1'
finetune pictures --valid-fraction 20 | expected a number between 0 and 1, got '20'
finetune pictures --valid-fraction 0 | expected a number between 0 and 1, got '0'
finetune pictures --valid-fraction 20% | expected a number between 0 and 1, got '20%'
finetune pictures --on-error ignore | invalid choice: 'ignore' (choose from 'raise', 'skip')
finetune pictures --backend cuda | expected auto, cpu, cpu:bf16, reference, gpu or gpu:1
finetune pictures --backend gpu:x | expected auto, cpu, cpu:bf16, reference, gpu or gpu:1
finetune pictures --optimizer adamw | invalid choice: 'adamw'; did you mean adam
finetune pictures --optimizer Adam | invalid choice: 'Adam'; did you mean adam
finetune pictures --weight-decay -1 | expected a number >= 0, got '-1'
finetune pictures --weight-decay lots | expected a number >= 0, got 'lots'
finetune pictures --dropout 2 | expected a number from 0 to 1, got '2'
finetune pictures --label-smoothing 1.5 | expected a number from 0 to 1, got '1.5'
finetune pictures --class-weights yes | invalid choice: 'yes' (choose from 'balanced')
finetune pictures --keep best | expected a whole number from 1 to 10,000, got 'best'
finetune pictures --keep 0 | expected a whole number from 1 to 10,000, got '0'
finetune pictures --weights gone.pth | gone.pth: No such file or directory
finetune pictures --weights none --arch resnt18 | got 'resnt18'; did you mean resnet18?
finetune pictures --weights cifar_resnet20 | no weights of cifar_resnet20 are published; give a
finetune pictures --weights pictures | pictures is a folder; give a file of weights, of a run its
finetune pictures --weights RUN | is a folder; give a file of weights, of a run its learner.h5
finetune pictures --weights page.pth | it is a web page; download the file itself, by the link to
finetune pictures --weights empty.pth | it is empty; get it again
finetune pictures --weights keras.h5 | keras.h5: the root is an old-style group: another program
finetune pictures --weights words.txt | it begins with b'weights,'
finetune pictures --weights pictures/cat/0.png | it is a picture; pictures come as DIR
finetune pictures --out RUN --weights none --arch cifar_resnet20 | exists already; give another
finetune pictures --out pictures --weights none --arch cifar_resnet20 | the run cannot be
finetune pictures --out words.txt --weights none --arch cifar_resnet20 | the run cannot be
finetune pictures --out words.txt/run --weights none --arch cifar_resnet20 | the run cannot be
finetune pictures --labels gone.csv | there is no table gone.csv; expected a CSV file:
finetune pictures --labels words.txt | words.txt has the columns weights, really; expected
finetune pictures --labels pictures/cat/0.png | pictures/cat/0.png is no CSV file in UTF-8:
finetune pictures --labels empty.csv | empty.csv has no header; expected file,label
finetune pictures --labels strange.csv | strange.csv has the columns picture, animal; expected
finetune pictures --labels wrong.csv | 1 of 1 row cannot be used: wrong.csv, line 2: there is no
finetune pictures --labels split.csv | split.csv, line 2: the split is 'practice'; expected one
finetune pictures --labels labels.csv --label-regex '(.*)' | not allowed with argument --labels
finetune pictures --label-regex '[' | label_regex '[' is no pattern: unterminated character set
finetune pictures --label-regex cat | label_regex 'cat' has no group; put what is the label in ( )
finetune pictures --label-regex '(horse)' | label_regex '(horse)' is found in no name of 12
finetune pictures/cat | no class folders with pictures in pictures/cat: found 0 pictures in 0
finetune flat | no class folders with pictures in flat: found 0 pictures in 0
finetune words.txt | words.txt is not a folder; expected train/CLASS/*.jpg with
finetune pictures/cat/0.png | pictures/cat/0.png is not a folder; expected train/CLASS/*.jpg with
finetune '' | an argument is empty; is it a variable that is not set?
finetune emptyfolder | no class folders with pictures in emptyfolder: found 0 pictures in 0
finetune single | training needs at least two classes; found only cat
finetune alone | a class with one picture cannot be split: dog; add pictures, or make
finetune broken | 1 of 4 pictures cannot be used: dog/1.jpg: not a picture of a known
finetune documents | no class folders with pictures in documents: found 0 pictures in 0
finetune onlyvalid | onlyvalid has valid/ and no train/; expected train/CLASS/*.jpg with
finetune ~nobody/photos | ~nobody/photos is not a folder; expected train/CLASS/*.jpg with
finetune 'pictures ' | pictures  is not a folder; expected train/CLASS/*.jpg with
finetune pictures --resume RUN --epochs 9 | which began with 1; resume it without options, or
finetune --resume RUN | is finished; there is nothing to resume
finetune --resume | expected one argument
finetune --resume runs | runs is no run, or was stopped before its first step: it has no
finetune --resume pictures | pictures is no run, or was stopped before its first step: it has no
finetune --resume words.txt | words.txt is no run, or was stopped before its first step: it has
finetune --resume runs/pictures-cifar_resnet20-7 | there is no run
finetune --resume RUN --lr 0.1 | which began with 0.002; resume it without options, or start a
finetune --resume RUN --continue RUN | not allowed with argument --resume
finetune --resume RUN --data gone | is finished; there is nothing to resume
finetune --data pictures | --data is for --resume; a new run takes its pictures as DIR
finetune --continue pictures | pictures is no run, or was stopped before its first step: it has
finetune --continue RUN --arch resnet18 | --arch: what is continued is as
finetune --continue RUN --valid-fraction 0.5 | --valid-fraction: what is continued is as
finetune --continue RUN --data pictures | --data is for --resume; a new run takes its pictures as
finetune --continue RUN strangers --weights none | --weights: what is continued is as
finetune --quiet | unrecognized arguments: --quiet; `tinyft
finetune -e 3 | unrecognized arguments: -e
finetune pictures --output run | unrecognized arguments: --output run; did you mean --out
finetune pictures --learning-rate 0.1 | unrecognized arguments: --learning-rate 0.1
plan flat | no class folders with pictures in flat: found 0 pictures in 0
plan pictures --explane | unrecognized arguments: --explane; did you mean --explain
plan pictures --epochs many | expected a whole number from 0 to 10,000, got 'many'
plan pictures --lr 0 | expected a learning rate above 0, often from 0.0001 to 0.1, and at
plan pictures --weights gone.h5 | gone.h5: No such file or directory
plan pictures --out run | unrecognized arguments: --out run; `tinyft
plan emptyfolder | no class folders with pictures in emptyfolder: found 0 pictures in 0
plan pictures --json | unrecognized arguments: --json; `tinyft
check flat | no class folders with pictures in flat: found 0 pictures in 0
check emptyfolder | no class folders with pictures in emptyfolder: found 0 pictures in 0
check words.txt | words.txt is not a folder; expected train/CLASS/*.jpg with
check pictures --html pictures/cat/0.png | unrecognized arguments: --html pictures/cat/0.png;
check pictures --html pictures | unrecognized arguments: --html pictures; `tinyft
check pictures --html gone/page.html | unrecognized arguments: --html gone/page.html; `tinyft
check pictures --weights page.pth | it is a web page; download the file itself, by the link to
check pictures --weights gone.h5 | gone.h5: No such file or directory
check pictures --jsn | unrecognized arguments: --jsn; did you mean --json
check pictures --labels gone.csv | there is no table gone.csv; expected a CSV file:
predict | the following arguments are required: RUN, FILE
predict RUN | the following arguments are required: FILE
predict RUN gone.jpg | gone.jpg: cannot be opened: No such file or directory; leave it out,
predict RUN words.txt | words.txt: not a picture of a known format (JPEG, PNG, WEBP, BMP,
predict RUN emptyfolder | there are no pictures in emptyfolder
predict RUN empty.jpg | empty.jpg: the file is empty (0 bytes); leave it out, or use
predict pictures pictures/cat/0.png | pictures is no run, or was stopped before its first step:
predict page.pth pictures/cat/0.png | it is a web page; download the file itself, by the link to
predict empty.pth pictures/cat/0.png | it is empty; get it again
predict small.safetensors pictures/cat/0.png | small.safetensors: the weights have no classifier
predict pictures/cat/0.png RUN | there are no pictures in
predict RUN pictures/cat/0.png --top 0 | expected a whole number >= 1, got '0'
predict RUN pictures/cat/0.png --top many | expected a whole number >= 1, got 'many'
predict RUN pictures/cat/0.png --csv words.txt | --csv words.txt exists, and only a file that
predict RUN pictures/cat/0.png --csv gone/out.csv | --csv gone/out.csv: there is no folder gone
predict RUN pictures/cat/0.png --csv pictures | --csv pictures is a folder; name a file in it
predict RUN pictures/cat/0.png --backend tpu | expected auto, cpu, cpu:bf16, reference, gpu or gpu:1
predict small.h5 pictures/cat/0.png --best | --best is for a run's folder, and small.h5 is none
predict RUN 'pictures/*/9.png' | pictures/*/9.png: cannot be opened: No such file or directory;
predict RUN -1 | -1: cannot be opened: No such file or directory; leave it out, or use
evaluate | the following arguments are required: RUN|WEIGHTS
evaluate RUN flat | no class folders with pictures in flat: found 0 pictures in 0
evaluate RUN emptyfolder | no class folders with pictures in emptyfolder: found 0 pictures in 0
evaluate RUN strangers | the folder has pictures of cow, pig, which are not among the 2 classes
evaluate RUN pictures --data pictures | --data is for a run's own pictures; give either a run and
evaluate small.h5 | which pictures? Only a run has its own; give a folder
evaluate small.h5 --data pictures | --data is for a run's own pictures; give either a run and it,
evaluate gone.h5 pictures | gone.h5: No such file or directory
evaluate page.pth pictures | it is a web page; download the file itself, by the link to its raw
evaluate pictures RUN | pictures is no run, or was stopped before its first step: it has no
evaluate RUN --data gone | gone is not a folder; expected that of the pictures
evaluate RUN --data emptyfolder | 12 of 12 pictures are not in emptyfolder, or have changed:
evaluate RUN --html pictures/cat/0.png | --html pictures/cat/0.png exists, and only a file that
evaluate RUN --csv gone/out.csv | --csv gone/out.csv: there is no folder gone
evaluate RUN --batch-size 0 | expected a whole number >= 1, got '0'
evaluate resnet18.h5 pictures | resnet18.h5: No such file or directory
evaluate small.h5 pictures --best | --best is for a run's folder, and small.h5 is none
evaluate RUN pictures --labels gone.csv | there is no table gone.csv; expected a CSV file:
evaluate small.safetensors three | these weights have no classifier (fc.weight and fc.bias);
report | the following arguments are required: RUN
report pictures | pictures is no run, or was stopped before its first step: it has no
report RUN --out pictures/cat/0.png | --out pictures/cat/0.png exists, and only a file that ends
report RUN --out pictures | --out pictures is a folder; name a file in it
report RUN --out gone/page.html | --out gone/page.html: there is no folder gone
report words.txt | words.txt is no run, or was stopped before its first step: it has no
report RUN RUN | `tinyft report --help` shows an example
report small.h5 | small.h5 is no run, or was stopped before its first step: it has no
inspect RUN | the following arguments are required: --step
inspect RUN --step | expected one argument
inspect RUN --step -1 | expected a whole number >= 0, got '-1'
inspect RUN --step last | expected a whole number >= 0, got 'last'
inspect RUN --step 99 | has no step 99: its steps are 0 to 1, counted as in metrics.csv
inspect RUN --step 0 --node -1 | expected a whole number >= 0, got '-1'
inspect RUN --step 0 --why --node 3 | --change answer in text or JSON; --node, --html
inspect RUN --step 0 --what-if --html page.html | --change answer in text or JSON;
inspect RUN --step 0 --html same.html --dot same.html | --html and --dot would both be written to
inspect RUN --step 0 --html words.txt | --html words.txt exists, and only a file that ends in
inspect RUN --step 0 --dot pictures | --dot pictures is a folder; name a file in it
inspect RUN --step 0 --data gone | gone is not a folder; expected that of the pictures
inspect RUN --step 0 --data strangers | 11 of 12 pictures are not in strangers, or have changed:
inspect pictures --step 0 | pictures is no run, or was stopped before its first step: it has no
inspect small.h5 --step 0 | small.h5 is no run, or was stopped before its first step: it has no
diff | the following arguments are required: RUN|FILE
diff gone | gone is no run; to compare two files give both: tinyft diff A.h5 B.h5
diff small.h5 page.pth | it is a web page; download the file itself, by the link to its raw
diff pictures | pictures is no run, or was stopped before its first step: it has no
diff small.h5 | small.h5 is no run; to compare two files give both: tinyft diff A.h5
diff RUN RUN RUN | `tinyft diff --help` shows an example
diff RUN --html pictures/cat/0.png | --html pictures/cat/0.png exists, and only a file that ends
diff words.txt small.h5 | it begins with b'weights,'
diff small.h5 resnt18 | there is no file or folder 'resnt18', and no published weights are
serve | the following arguments are required: RUN
serve pictures | pictures is no run, or was stopped before its first step: it has no
serve page.pth | it is a web page; download the file itself, by the link to its raw
serve RUN --port 99999 | expected a whole number from 0 to 65,535, got '99999'
serve RUN --port web | expected a whole number from 0 to 65,535, got 'web'
serve RUN --port -1 | expected a whole number from 0 to 65,535, got '-1'
serve small.safetensors | small.safetensors: the weights have no classifier (fc.weight and
embed | the following arguments are required: DIR, OUT.npz
embed pictures | the following arguments are required: OUT.npz
embed gone out.npz | gone: cannot be opened: No such file or directory; leave it out, or
embed pictures gone/out.npz | OUT.npz gone/out.npz: there is no folder gone
embed pictures words.txt | OUT.npz words.txt exists, and only a file that ends in .npz is
embed pictures pictures | OUT.npz pictures is a folder; name a file in it
embed emptyfolder out.npz | there are no pictures in emptyfolder
embed pictures out.npz --weights page.pth | it is a web page; download the file itself, by the
clean | the following arguments are required: RUN
clean pictures | pictures is no run, or was stopped before its first step: it has no
clean words.txt | words.txt is no run, or was stopped before its first step: it has no
clean RUN --keep best | unrecognized arguments: --keep best; `tinyft
clean RUN --keep 0 | unrecognized arguments: --keep 0; `tinyft
clean RUN --force | unrecognized arguments: --force
weights list resnet | unrecognized arguments: resnet
weights fetch | the following arguments are required: NAME
weights fetch gone.pth | there is no file or folder 'gone.pth', and no published weights are
weights convert small.h5 | the following arguments are required: OUT.h5
weights convert pictures out.h5 | pictures is a folder; give a file of weights, of a run its
weights convert words.txt out.h5 | it begins with b'weights,'
weights convert small.h5 gone/out.h5 | OUT gone/out.h5: there is no folder gone
weights convert small.h5 pictures | weights convert writes tinyft's HDF5 file, so its name should
weights export small.h5 out.pth | it writes ONNX or, also for PyTorch, safetensors, so its name
weights export small.h5 out | it writes ONNX or, also for PyTorch, safetensors, so its name
weights export small.h5 gone/out.onnx | OUT gone/out.onnx: there is no folder gone
weights export gone.h5 out.onnx | gone.h5: No such file or directory
weights export RUN words.txt | it writes ONNX or, also for PyTorch, safetensors, so its name
weights verify '' | an argument is empty; is it a variable that is not set?
weights remove resnet18 | invalid choice: 'remove' (choose from 'list', 'fetch', 'convert',
lr-find flat | no class folders with pictures in flat: found 0 pictures in 0
lr-find pictures --steps 0 | expected a whole number >= 10, got '0'
lr-find pictures --steps many | expected a whole number >= 10, got 'many'
lr-find pictures --epochs 3 | unrecognized arguments: --epochs 3; `tinyft
lr-find pictures --weights gone.h5 | gone.h5: No such file or directory
lr-find pictures --html pictures | unrecognized arguments: --html pictures; `tinyft
lr-find pictures --arch vgg16 | got 'vgg16'
bench --arch vgg16 | got 'vgg16'
bench --size 0 | expected a whole number >= 1, got '0'
bench --all --arch resnet18 | --all has its own networks and sizes; leave out the other options
bench --batch-size none | expected a whole number >= 2, got 'none'
bench --backend tpu | expected auto, cpu, cpu:bf16, reference, gpu or gpu:1
bench resnet18 | unrecognized arguments: resnet18
gradcheck gone.py:f --shapes 2 | expected FILE.py:FUNCTION, and gone.py is no Python file
gradcheck words.txt:f --shapes 2 | expected FILE.py:FUNCTION, and words.txt is no Python file
gradcheck mine.py --shapes 2 | --shapes is for a function of yours: tinyft gradcheck
gradcheck mine.py:g --shapes 2 | mine.py has no function g
gradcheck mine.py:f --shapes 2y3 | expected shapes as 2x3,4x5; got '2y3'
gradcheck mine.py:f --shapes '' | expected shapes as 2x3,4x5; got ''
gradcheck mine.py:f | the file has no inputs(); define it, or give --shapes 2x3,4x5
gradcheck conv | there is no op 'conv'; there are add, batch_norm, batch_norm_eval,
gradcheck conv2 | there is no op 'conv2'; there are add, batch_norm, batch_norm_eval,
gradcheck broken.py:f --shapes 2 | broken.py cannot be run (SyntaxError: '(' was never closed
warmup --arch vgg16 | got 'vgg16'
warmup resnet18 | unrecognized arguments: resnet18
warmup --size 0 | expected a whole number >= 1, got '0'
warmup --backend tpu | unrecognized arguments: --backend tpu; `tinyft
doctor now | unrecognized arguments: now
doctor --jsn | unrecognized arguments: --jsn
selftest --backend tpu | expected auto, cpu, cpu:bf16, reference, gpu or gpu:1
summary | the following arguments are required: ARCH
summary vgg16 | got 'vgg16'
summary resnet18 --size 0 | expected a whole number >= 1, got '0'
summary resnet-18 | got 'resnet-18'; did you mean resnet18?
summary small.h5 | got 'small.h5'
summary resnet18 resnet34 | unrecognized arguments: resnet34
"""


def rows(text):
    """(command line, exit code, words) of each line."""
    for line in text.strip().splitlines():
        command, _, words = line.partition(" | ")
        yield command.removeprefix("! "), 1 if command.startswith("! ") else 2, words


ROWS = [row for text in (WEIGHTS, COMMANDS, TRAINING, MORE) for row in rows(text)]


@pytest.fixture(scope="module")
def workplace(once_trained, tmp_path_factory):
    """Two classes of pictures, a run on them, its network as a file, and much that is neither."""
    folder = tmp_path_factory.mktemp("careless")
    shutil.copytree(once_trained, folder, dirs_exist_ok=True)
    described = folder / RUN / "run.json"
    described.write_text(described.read_text().replace(str(once_trained), str(folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fill()
        yield folder


def fill():
    """Put into the current folder what the rows name."""
    for file, content in {
        "page.pth": b"<!DOCTYPE html><html>404</html>",
        "indented.h5": b"\n <html>404</html>",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46\n",
        "empty.pth": b"",
        "answer.json": b'{"error": "not found"}',
        "packed.gz": b"\x1f\x8b\x08\0",
        "words.txt": b"weights, really",
    }.items():
        with open(file, "wb") as out:
            out.write(content)
    for file, text in {
        "empty.csv": "",
        "strange.csv": "picture,animal\na,b\n",
        "wrong.csv": "file,label\ngone.png,cat\n",
        "split.csv": "file,label,split\ncat/0.png,cat,practice\n",
        "labels.csv": "file,label\ncat/0.png,cat\n",
        "mine.py": "def f(x):\n    return x * 2\n",
        "broken.py": "def f(x:\n",
        "empty.jpg": "",
        "documents/cat/a.pdf": "",
        "broken/dog/1.jpg": "<html>",
    }.items():
        os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
        with open(file, "w") as out:
            out.write(text)
    for file in (
        *("flat/1.png", "flat/2.png", "single/cat/0.png", "single/cat/1.png", "alone/cat/0.png"),
        *("alone/cat/1.png", "alone/dog/0.png", "broken/cat/0.png", "broken/cat/1.png"),
        *("broken/dog/0.png", "onlyvalid/valid/cat/0.png", "three/a/0.png", "three/b/0.png"),
        *("three/c/0.png", "strangers/cow/0.png", "strangers/pig/0.png", "strangers/pig/1.png"),
    ):
        os.makedirs(os.path.dirname(file), exist_ok=True)
        shutil.copy("pictures/cat/0.png", file)
    os.mkdir("emptyfolder")
    with h5py.File("keras.h5", "w") as file:
        file.attrs["keras_version"] = b"2.1"
        file["conv1/kernel:0"] = np.zeros((3, 3))
    for file, member in (("model.keras", "model.weights.h5"), ("photos.zip", "cat.png")):
        with zipfile.ZipFile(file, "w") as content:
            content.writestr(member, b"x")
    np.savez("arrays.npz", a=np.zeros(3))
    np.save("arrays.npy", np.zeros(3))
    for folder in ("one", "links"):
        os.mkdir(folder)
    shutil.copy("pictures/cat/0.png", "one")
    for name in ("cat", "dog"):
        os.symlink(os.path.abspath(f"pictures/{name}"), f"links/{name}")
    shutil.copy(f"{RUN}/learner.h5", "small.h5")
    assert call("weights export small.h5 small.safetensors")[0] == 0


def call(command):
    """(code, stdout, stderr) of a command line, within this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(shlex.split(command.replace("RUN", RUN)))
        except SystemExit as ended:
            code = ended.code
    return code, out.getvalue(), err.getvalue()


def contents(folder):
    """Every file below the folder, with its size and when it was written."""
    found = {}
    for above, _, files in os.walk(folder):
        for file in files if os.path.basename(above) != "__pycache__" else ():  # Python's own
            path = os.path.join(above, file)
            status = os.lstat(path)
            taken = file == ".lock"  # which an older filelock empties anew
            found[path] = status.st_size, 0 if taken else status.st_mtime_ns
    return found


@pytest.mark.parametrize(("command", "code", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_a_command_line(workplace, command, code, words):
    before = contents(workplace)
    found, out, err = call(command)
    *notes, line = err.strip().splitlines()
    assert words in line, line
    assert found == code
    assert out == ""
    assert line.startswith("tinyft") and len(line) < MOST, line
    assert not [note for note in notes if note.startswith("tinyft ")]
    assert not [word for word in NEVER if word in err], err
    assert contents(workplace) == before


def test_no_command_is_a_start_page(workplace):
    code, out, err = call("")
    assert (code, err) == (0, "")
    commands = [line.split("   ")[0].strip() for line in out.splitlines() if "  tinyft" in line]
    assert commands[:2] == ["tinyft finetune", "tinyft check photos/"] and len(commands) == 5
    assert "tinyft --help" in commands


PYTHON = """
ft.ImageFolder("nowhere") | is not a folder
ft.ImageFolder("picture") | did you mean pictures?
ft.ImageFolder("https://example.com/photos") | https://example.com/photos is not a folder
ft.ImageFolder("pictures", valid_fraction=20) | must be above 0 and at most 1; got 20
ft.ImageFolder("pictures", on_error="ignore") | must be 'raise' or 'skip'; got 'ignore'
ft.ImageFolder("pictures", augment="mixup") | augment must be one of default, crop, shift
ft.ImageFolder("single") and ft.ImageFolder("links") | links to folders are not followed
ft.load_weights("resnt18") | did you mean resnet18
ft.load_weights("page.pth") | it is a web page
ft.load_weights("small.h5", arch="resnet18") | give arch='cifar_resnet20' or leave it out
ft.load_learner("page.pth") | it is a web page
ft.vision_learner(ft.ImageFolder("pictures"), "resnet81") | did you mean resnet18?
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("call", "words"), [(row[0], row[2]) for row in rows(PYTHON)])
def test_a_call_from_python(workplace, call, words):
    before = contents(workplace)
    with pytest.raises((ft.errors.TinyftError, ValueError)) as caught:
        eval(call, {"ft": ft})
    assert words in str(caught.value)
    assert len(str(caught.value)) < MOST
    assert contents(workplace) == before
