"""Every option, its default, and what it means. Each config file starts from this one and changes what it needs."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The defaults: FedAvg of a small MLP on the digits of four made-up hospitals."""
    config = ConfigDict()

    config.name = ""  # name of the run in reports; "" = the method's. Runs of one name differ in their seed
    config.seed = 0  # of everything random: initial model, partition, splits, cohorts, batches
    config.seeds = ()  # several runs as one program, each with one of these for seed, e.g. 0,1,2; () = one run
    config.lrs = ()  # the same with one of these for client.lr, e.g. 0.1,0.01; with seeds every pair
    config.method = "fedavg"  # a name in fedjax_pfl.algorithms.METHODS; its options stand in the section of that name
    config.rounds = 20  # number of rounds R
    config.rounds_per_call = (
        1  # so many in one call of the compiled program; divides rounds, eval.every, checkpoint.every
    )
    config.devices = 0  # among which a round's clients are dealt out; 0 = all accelerators, or the one CPU

    # Data ---------------------------------------------------------------------------------------------------------
    config.data = dict(
        # digits | npz | ham10000 | dermoscopy | medmnist | tfds | mnist | usps | mnist_m | cifar10 | fcube | flair | coco |
        # voc | digit_scenes | prostate | digit5 | domains | office_features | amazon_reviews
        source="digits",
        digits=dict(
            seed=0,  # draws which image goes to which hospital, and the noise of its scanner
            size=16,  # pixels: 8 as published, or more (bilinear)
        ),
        npz=dict(
            path="",  # the .npz file; ~ and $VARIABLES are expanded in every path
            x="x",  # key of the inputs; x_train / x_val / x_test (or x_validation) are found from it when the key is absent
            y="y",  # key of the labels: [n] classes, [n, L] 0/1, or [n, H, W] masks
            client="",  # key of the client of each row (ints, -1 = not used, or strings); "" = "client", else "site", else none
            split="split",  # key of the given split (ints into split_names, or the words themselves), if the file has it
            split_names=("train", "validation", "test"),  # what the integers 0, 1, 2 of that column mean
            group="group",  # key of the group of each row (a lesion, a patient): one group is never cut, if the file has it
            classes=0,  # number of classes; 0 = from class_names, else the largest label + 1
            threshold=0,  # masks stored as grey values: label 1 from this value up; 0 = the values are the labels
            size=0,  # pixels to resize images to (block means where it divides, else bicubic); 0 = as stored
            val="validation",  # what x_val is: validation | test
        ),
        ham10000=dict(
            path="",  # ham10000_28x28.npz or ham10000_prrfl_64x64_sub.npz
            clients="prrfl",  # prrfl: its three clients A, B, C | site: the four sites of origin
            split="prrfl",  # prrfl: its own lists (lesions stand in train and test!) | lesion: no lesion is cut
            labels="prrfl",  # prrfl: nv, bkl, mel | dx: all seven diagnoses
        ),
        dermoscopy=dict(
            path="",  # PRR-FL's folder (csv_folder/, data/) or a zip of it
            size=0,  # pixels to resize to (bicubic); 0 = as stored
            split="prrfl",  # prrfl: its own lists | lesion: no lesion is cut (rows without lesion_id: by image)
            labels="three",  # three: nv, bkl, mel | binary: melanoma or not
            cache=True,  # keep the decoded images in the user's cache folder
        ),
        medmnist=dict(
            path="",  # any MedMNIST v2 .npz (train_images ... test_labels)
        ),
        tfds=dict(
            name="",  # e.g. "mnist" or "cifar10:3.0.2"; "domainnet/real,domainnet/sketch": each a natural client
            data_dir="",  # where the data set was prepared; "" = TFDS's own default
            image="image",  # feature with the inputs
            label="label",  # feature with the labels; a sequence, e.g. "labels" or "objects/label", makes several for each row
            client="",  # feature with the natural client, if there is one
            train="train",  # split used for training
            validation="",  # split used for validation, "" = none
            test="test",  # split used for testing, "" = none
            download=False,  # True: download and prepare what is missing (needs TensorFlow for some data sets)
            size=0,  # pixels to resize images to (bicubic); 0 = as stored, all of one size
        ),
        mnist=dict(path=""),  # npz with x_train, y_train, x_test, y_test
        usps=dict(path=""),  # the same layout
        mnist_m=dict(path=""),  # the same layout
        cifar10=dict(path=""),  # the same layout
        fcube=dict(
            train=4000,  # training points (a multiple of 4)
            test=1000,  # test points
            seed=0,  # NIID-Bench's init_seed
        ),
        coco=dict(
            path="",  # the folder with annotations/, train<year>/ and val<year>/
            year=2014,  # 2014 | 2017
            size=256,  # pixels to resize to (bicubic, aspect ratio not kept)
            unlabelled="drop",  # images that nobody annotated: drop | keep
            max_images=0,  # of train and of val, the first so many, for trying out; 0 = all
            cache=True,  # keep the decoded images in the user's cache folder (24 GB at 256 pixels) and map them from there
        ),
        voc=dict(
            path="",  # the VOCdevkit folder, or one that holds it
            years=("2007",),  # "2007", "2012" or both
            train="trainval",  # list of training images: trainval | train
            test="test",  # list of test images: test | val (2012 has no labelled test list); "" = none
            size=256,  # pixels to resize to (bicubic, aspect ratio not kept)
            difficult="drop",  # objects that VOC marks as difficult: drop | keep
            cache=True,  # keep the decoded images in the user's cache folder and map them from there
        ),
        digit_scenes=dict(
            seed=0,  # draws everything
            size=32,  # pixels, at least 16
            clients=8,  # natural clients, each with two groups of digits that go together
            examples=300,  # training scenes of a client
            test_examples=75,  # test scenes of a client
            digits=3,  # largest number of different digits in a scene, and the size of a group: 1 to 5
            skew=0.8,  # chance that a scene takes its digits from a group of its client; 0 = all clients alike
            test="common",  # test scenes: common (drawn with skew 0) | own (as the client's training scenes)
        ),
        flair=dict(
            path="",  # federated HDF5 of apple/ml-flair's prepare_dataset.py; its images are read cohort by cohort
            labels="coarse",  # coarse: 17 | fine: 1,628
            order="appearance",  # of the labels: appearance (FedLGT; needs metadata or mapping) | alphabetical (pfl-research)
            metadata="",  # the providers' labels_and_metadata.json
            mapping="",  # or FedLGT's label_mapping.json, fine_grained_label_mapping.json
            max_images=0,  # of a training user, the first so many (pfl-research: 512); 0 = all
        ),
        prostate=dict(  # MRI volumes have mean 0, deviation 1: leave augment.brightness and contrast off
            path="",  # folders of institutions with Case*.nii.gz and Case*_segmentation.nii.gz, or PRR-FL's lists and pictures
            size=0,  # pixels to resize to (images bicubic, masks nearest); 0 = as stored
            slices="prostate",  # of a volume: prostate (from the first to the last slice that shows it) | all
            neighbours=True,  # the slices before and behind as channels
        ),
        digit5=dict(  # MNIST, MNIST-M, SVHN, SynthDigits and USPS as five clients
            path="",  # the folder of all domains: KD3A's or M3SDA's files, or FedBN's folders
            domains=(),  # which of mnist, mnist_m, svhn, synth, usps; () = all that are there
            mnist="",  # one domain's own file or folder (.mat, .pkl, .h5, .npz, idx files); "" = look in path
            mnist_m="",  # the same, or "made": from MNIST and backgrounds
            svhn="",
            synth="",  # the same, or "made": from fonts and backgrounds, a stand-in for SynthDigits
            usps="",
            size=32,  # pixels to resize to (bilinear)
            train=25_000,  # training rows of a domain, so many at most; 0 = all
            test=9_000,  # test rows of a domain, so many at most; 0 = all
            test_share=0.25,  # what is split off for testing where a file has no split
            tile_usps=False,  # the training images of USPS four times over (KD3A)
            backgrounds="",  # pictures for what is made: an .npz with x, or a folder of them
            fonts="",  # glyphs for what is made: e.g. an .npz with x, y, font_id
            seed=0,  # draws rows, splits and what is made
        ),
        domains=dict(  # pictures by domain and class: DomainNet, MiniDomainNet, Office-Caltech10, Office-31, PACS
            path="",  # the folder of the domains
            domains=(),  # which of them; () = all
            classes=(),  # which classes, by name; () = all
            lists="auto",  # of train and test pictures: auto | none | the folder they are in
            size=224,  # pixels to resize to (bicubic, aspect ratio not kept)
            test_share=0.2,  # without lists: of each class
            max_examples=0,  # of a domain's training and of its test pictures, so many at most; 0 = all
            seed=0,  # draws the test pictures and those of max_examples
            cache=True,  # keep the decoded pictures in the user's cache folder and map them from there
        ),
        office_features=dict(  # SURF or DeCAF features of Office-Caltech10: set model.name to mlp
            path="",  # the folder of the .mat files, one for each domain
            pattern="*.mat",  # which of them, e.g. "*_SURF_L10.mat"
            domains=(),  # which domains; () = all
            test_share=0.2,  # of each class
            standardise=True,  # rows divided by their sums, then mean 0 and deviation 1 within a domain (training rows)
            seed=0,  # draws the split
        ),
        amazon_reviews=dict(  # books, dvd, electronics, kitchen
            path="",  # KD3A's amazon.npz, mSDA's amazon.mat, or an .npz with {domain}_{train,test}_{indptr,indices,values,y}
            features=5000,  # the first so many words and pairs of words; 0 = all
            scale="counts",  # counts | log: log(1 + count) | binary
            train=2000,  # training reviews of a domain, where the file has no split
            seed=0,  # draws them
        ),
    )

    config.split = dict(
        # natural | homogeneous | label_quantity | dirichlet | noise | fcube | real | quantity | shards | hsu | label_cluster
        partition="natural",
        natural=dict(
            min_examples=1,  # natural clients with fewer rows are left out
        ),
        homogeneous=dict(clients=10),  # number of clients N
        label_quantity=dict(
            clients=10,  # number of clients N
            k=2,  # classes a client holds (#C = k)
            unheld="error",  # a class that no client drew: error | drop (its rows are not used)
        ),
        dirichlet=dict(
            clients=10,  # number of clients N
            beta=0.5,  # concentration: the smaller, the more skewed
            min_size=10,  # drawn again until the smallest client has this many rows
            retries=1000,  # at most so often
        ),
        noise=dict(
            clients=10,  # number of clients N
            level=0.1,  # standard deviation of the last client's noise, inputs in [0, 1]; client i has level * i / (N - 1)
        ),
        fcube=dict(clients=4),  # consecutive equal parts: with source fcube a pair of octants each
        real=dict(clients=10),  # natural clients (writers) permuted and joined into N groups
        quantity=dict(
            clients=10,  # number of clients N
            beta=0.5,  # sizes ~ Dir(beta)
            min_size=10,  # drawn again until the smallest client has this many rows
            retries=1000,  # at most so often
        ),
        shards=dict(
            clients=10,  # number of clients N
            shards=2,  # shards of the rows sorted by label that a client holds
        ),
        hsu=dict(
            clients=10,  # number of clients N
            alpha=0.5,  # each client's classes ~ Dirichlet(alpha * class frequencies)
        ),
        label_cluster=dict(
            clients=10,  # number of clients N
            groups=3,  # groups that the labels are clustered into by co-occurrence
            skew=0.8,  # share of the rows that go to the clients of their group; 0 = IID
        ),
        how="auto",  # auto | given: the source's split | within: stratified inside each client | global: one test set for all
        validation=0.1,  # share of a client's rows, where the source gives no validation rows
        test=0.2,  # share of a client's rows, where the source gives no test rows (or how='within')
        min_train=1,  # a client keeps at least so many training rows
        max_clients=0,  # 0 = all; else so many clients, drawn by seed
        max_examples=0,  # 0 = all; else so many rows of the pool, stratified by client, split and label
    )

    config.augment = dict(
        flip_horizontal=0.0,  # probability
        flip_vertical=0.0,  # probability
        shift=0.0,  # largest shift, share of height and width
        scale=0.0,  # largest change of scale: 0.1 = 0.9 ... 1.1
        rotate=0.0,  # largest rotation, degrees
        shift_scale_rotate_p=0.0,  # probability of shift, scale and rotate together
        crop_padding=0,  # pixels of zero padding before a random crop to the old size; 0 = off
        brightness=0.0,  # largest change of brightness, inputs in [0, 1]
        brightness_p=0.0,  # its probability
        contrast=0.0,  # largest change of contrast about the image's mean: 0.2 = 0.8 ... 1.2
        contrast_p=0.0,  # its probability
        mean=(0.0,),  # subtracted from inputs in [0, 1]: one value, or one per channel
        std=(1.0,),  # then divided by: one value, or one per channel
    )

    # Text embeddings of the labels, for methods that use them; --mode=embed writes them to a file -----------------
    config.text = dict(
        embeddings="",  # .npz with names [L] and embeddings [L, d] | package: the small table shipped | "": by the encoder
        key="",  # which table of a file that has several: <key> with <key>_names
        states="",  # negative and positive: "" = where the labels are from | package | .npz with states and states_names
        encoder="openai/clip-vit-base-patch16",  # its id on the Hugging Face hub, or a local folder
        kind="clip",  # clip | bert (mean over the tokens)
        prompt="The photo contains {name}.",
        capitalise=False,  # names with a capital letter: Aeroplane (FedLGT on VOC)
        spaces=False,  # underscores in names as spaces (FedLGT leaves them)
        construction="plain",  # plain | concat: the class's 20 commonest finer labels in the prompt | avg: mean over them all
        subclasses="",  # for these two: label_relationship.txt (fine -> coarse), or .json (coarse -> fine, commonest first)
        counts="",  # how common: FLAIR's federated .hdf5 or labels_and_metadata.json; needed by concat with the .txt
    )

    # Model and loss -----------------------------------------------------------------------------------------------
    config.model = dict(
        name="mlp",  # a name in fedjax_pfl.models.MODELS
        per_client=(),  # the clients' own, given out in turn: ("mlp", "mlp(hidden=(32,))", "cnn_niid"); local, fml, fedmd
        weights="",  # PyTorch weights to start from (.pth, .safetensors, .npz)
        new_head=False,  # take all but the classifier from them
        mlp=dict(
            hidden=(200,),  # widths of the hidden layers; () = a linear model
            norm="none",  # none | batch | group
        ),
        cnn_niid=dict(impl="auto"),  # NIID-Bench's simple-cnn; impl: convolution by auto | xla | gemm | eigen
        cnn_pfl=dict(
            dropout_conv=0.25,  # after the pool
            dropout_dense=0.5,  # before the classifier
            impl="auto",
        ),
        cnn_fedmd=dict(  # FedMD's, of two or three convolutions
            widths=(128, 256),
            dropout=0.2,  # after each of them
            norm="batch",
            impl="auto",
        ),
        cnn_digit=dict(
            width=1.0,  # factor of all widths; 1 = KD3A's digit CNN
            norm="batch",
            dropout=0.5,
            impl="auto",
        ),
        vgg16_slim=dict(
            bias_fc2=False,  # a bias in the classifier (PRR-FL's "biased" variant)
            norm="batch",  # batch | group | none
            impl="auto",
        ),
        resnet8=dict(norm="batch", impl="auto"),  # CIFAR ResNets, option A
        resnet20=dict(norm="batch", impl="auto"),
        resnet32=dict(norm="batch", impl="auto"),
        resnet18=dict(norm="batch", stem="imagenet", impl="auto"),  # torchvision's layout; stem: imagenet | cifar
        resnet34=dict(norm="batch", stem="imagenet", impl="auto"),
        resnet50=dict(norm="batch", stem="imagenet", impl="auto"),
        resnet101=dict(norm="batch", stem="imagenet", impl="auto"),
        unet=dict(  # for masks
            depth=4,  # times that the image is halved
            width=64,  # channels at full size; each halving doubles them
            norm="batch",  # batch | group | none
            impl="auto",
        ),
        deeplab_resnet18=dict(  # for masks; model.weights may be a file of the ResNet-18 alone
            output_stride=16,  # the feature maps are smaller than the image by at most this: 8 | 16 | 32
            rates=(6, 12, 18),  # dilations of the head's 3x3 convolutions; smaller ones for images under 256 pixels
            width=256,  # channels of the head
            norm="batch",  # batch | group | none
            stem="imagenet",
            impl="auto",
        ),
        ctran=dict(  # the label-mask transformer of FedLGT and C-Tran, for several labels an example
            backbone="resnet18",  # any other model; model.weights may be a file of it alone
            labels="clip",  # label embeddings: clip | text (config.text says where from) | learned | onehot
            states="text",  # embeddings of 'negative' and 'positive': text (config.text) | learned
            width=512,  # of the transformer
            depth=3,  # encoder layers
            heads=4,
            feedforward=512,
            dropout=0.1,
            position="none",  # encoding of the visual tokens: none | sine
            known=0.75,  # label-mask training reveals up to this share of an example's labels; 0 = none (off)
            swapped_states=False,  # True: 'positive' marks known negatives and the other way round (the released code)
            norm="batch",  # of the backbone, as stem and impl
            stem="imagenet",
            impl="auto",
        ),
    )
    class_weights = dict(
        # none | inverse_frequency (1 / n_c) | effective_number ((1 - beta) / (1 - beta^n_c)), summing to C | given; n_c:
        # training examples of the clients that train
        weighting="none",
        beta=0.9999,  # for effective_number
        weights=(),  # for given: one number for each class
    )
    config.loss = dict(
        name="",  # a name in fedjax_pfl.losses.LOSSES; "" = the task's
        cross_entropy=dict(
            label_smoothing=0.0,
            **class_weights,
            reduction="weighted_mean",  # over a batch: weighted_mean (sum of w CE / sum of w) | mean (of w CE)
        ),
        focal=dict(  # -alpha_y (1 - p_y)^gamma log p_y
            gamma=2.0,
            **class_weights,  # the alpha
            reduction="mean",
        ),
        equalization=dict(  # examples of other classes don't push rare ones down
            form="softmax",  # softmax | sigmoid
            threshold=0.00177,  # lambda: a class with a smaller share of the training examples is rare
            gamma=0.9,  # softmax: chance that an example spares a rare class
        ),
        seesaw=dict(
            p=0.8,  # mitigation: rarer classes are pushed down less; 0 = off
            q=2.0,  # compensation: what is mistaken for the label is pushed down more; 0 = off
        ),
        balanced_softmax=dict(),  # cross entropy on z + log(number of training examples)
        over_batch="mean",  # of the examples' losses: mean | sum (FedLGT)
        binary_cross_entropy=dict(
            reduction="mean",  # over the labels: mean | sum
            weighting="none",  # of the labels: none | inverse_frequency (from all training rows, mean 1) | given
            weights=(),  # for given: one number for each label
        ),
        mse=dict(),
        dice_cross_entropy=dict(  # of masks: soft Dice of the foreground + cross entropy of the pixels
            dice_weight=1.0,
            cross_entropy_weight=1.0,
            smoothing=1.0,  # added to numerator and denominator of the Dice
        ),
        dice=dict(smoothing=1.0),
    )

    # A client's local training ------------------------------------------------------------------------------------
    config.client = dict(
        epochs=1,  # E, passes over its data in a round
        batch_size=32,  # B
        drop_last=False,  # leave out an epoch's last, incomplete batch
        # the rows of an epoch: instance (each once) | class_balanced | square_root | progressive (instance in the first round
        # to class-balanced in the last); all but instance draw as many rows with replacement
        sampler="instance",
        optimizer="sgd",  # sgd | adam; made anew every round
        sgd=dict(momentum=0.0, nesterov=False),
        adam=dict(b1=0.9, b2=0.999, eps=1e-8),
        lr=0.1,  # learning rate eta
        schedule=dict(
            name="constant",  # constant | step (factor^floor(r / every)) | exponential (factor^(r / every)) | cosine
            every=1,  # rounds
            factor=0.5,
            final=0.0,  # learning rate at the end of cosine
            warmup=0,  # rounds of linear warm-up
            period=0,  # rounds until cosine is at its end (then it rises again); 0 = all
            lag=0,  # the schedule starts so many rounds later
        ),
        weight_decay=0.0,  # added to the gradient before momentum
        clip=0.0,  # largest norm of a gradient; 0 = no clipping
        batch_norm="aggregate",  # aggregate | local (never leaves the client) | local-statistics (running statistics stay)
        # how the clients of a device run: map (in turn) | vmap (together) | a number (so many together) | lanes (together, but
        # their local steps in lanes that take the next client when one ends) | auto (map on a CPU, lanes elsewhere)
        map="auto",
        lanes=0,  # how many lanes; 0 = the most that are busy nine tenths of the time
    )

    # Who takes part -----------------------------------------------------------------------------------------------
    config.cohort = dict(
        sampling="all",  # all | uniform | by_size (chance ~ number of examples) | by_probability | fixed
        size=0,  # clients per round; 0: by fraction
        fraction=1.0,  # of the clients that can take part, at least one
        probability=(),  # for by_probability: a number per client
        ids=(),  # for fixed: the clients' numbers
        drop_out=0.0,  # chance that a client trains but its upload is lost
        resident="auto",  # keep the data on the device: auto (up to 2 GiB) | always | never
        states="auto",  # where clients' states are between rounds: device | host (memory) | disk (files in the run's
        # folder, mapped into memory) | auto (the host where they are more than a quarter of the device's memory)
    )

    # Evaluation, checkpoints, output ------------------------------------------------------------------------------
    config.eval = dict(
        every=1,  # rounds; the last round is always evaluated
        batch_size=256,
        held_out=0,  # clients that never train, drawn by seed; evaluated as newcomers in the end
        tuned="last",  # evaluate after extra local training as well: never | last (at the end) | always
        tune_epochs=0,  # epochs of that; 0 = client.epochs
        model="personal",  # the model that chooses the best round: personal | global
        metric="",  # the validation metric that chooses it; "" = macro_f1 (single label), c_ap (multi), dice (masks)
        best_from=0.0,  # share of the rounds before which no round can be the best (PRR-FL: 0.8)
        cross=False,  # at the end also every client's model on every client's test data: "cross" of summary.json
        retrogress=False,  # score models before and after each round's local training, on validation data: plots/retrogress.png
    )
    config.score = dict(
        metric="",  # of models scored within a round (PRR-FL's stages, eval.retrogress): "" = macro_f1, dice (masks)
    )
    config.checkpoint = dict(
        every=5,  # rounds; the best and the last round are always kept
        keep=2,  # how many of the newest
    )
    config.plots = True  # draw plots/*.png at the end
    config.tensorboard = True  # write TensorBoard events

    # Methods ------------------------------------------------------------------------------------------------------
    config.local = dict()
    config.centralised = dict()
    config.finetune = dict(
        start=15,  # federated rounds; the rest of the run fine-tunes
        tuned_layers=0,  # how many of the last layers; 0 = all
        lr_factor=1.0,  # learning rate of the fine-tuning, times the schedule's
        weighting="examples",  # of uploads: examples (n_k / n) | uniform
    )
    config.fedavg = dict(weighting="examples")
    config.fedprox = dict(
        mu=0.01,  # proximal term mu/2 ||w - w_t||^2
        weighting="examples",
    )
    config.scaffold = dict(
        option=2,  # control variate: 1 (gradient at the server's model) | 2 (from the path)
        corrected="gradient",  # gradient (paper) | step (after the optimiser's step, past momentum: NIID-Bench)
        server_lr=1.0,  # eta_g
        weighting="uniform",
    )
    config.fednova = dict(
        mu=0.0,  # proximal term of the clients, as FedProx's
        server_momentum=0.0,  # gamma
        fidelity="paper",  # paper | reference (the released code); sets what is None below
        normaliser=placeholder(str),  # of momentum with a proximal term: consistent (paper) | official (reference)
        tau_eff=placeholder(str),  # norms (paper; reference without mu) | steps (reference with mu)
        weighting="examples",
    )
    config.feddyn = dict(
        alpha=0.01,  # strength of the regulariser
        fidelity="paper",  # paper | reference (the released code); sets what is None below
        alphas=placeholder(str),  # a client's alpha: equal (paper) | by_size (reference: alpha n / (N n_k))
        evaluated=placeholder(str),  # the global model: server (paper) | mean (reference: of the participants' models)
    )
    config.moon = dict(
        mu=1.0,  # weight of the model-contrastive term
        temperature=0.5,  # T
        newcomers="none",  # previous model of who first takes part after round 0: none (no term) | initial | random
        weighting="examples",
    )
    config.vhl = dict(
        alpha=1.0,  # weight of the cross entropy of the virtual examples
        lambda_a=1.0,  # weight of the alignment of real and virtual features
        lambda_v=0.1,  # weight of the alignment of virtual features among themselves
        temperature=0.07,  # T of the alignment
        align_epochs=5,  # the alignment counts in so many first local epochs of a round
        labels="extra",  # extra (virtual classes have outputs of their own) | shared (virtual class c is class c)
        examples=2000,  # in the virtual data set
        batch_size=0,  # of the virtual batch; 0 = client.batch_size
        weighting="examples",
    )
    config.fedir = dict(
        normalise=False,  # divide a batch's weights p(y) / q_k(y) by their mean
        server_lr=1.0,
        momentum=0.0,  # of the server, as FedAvgM's
        nesterov=False,
        weighting="examples",
    )
    config.fedvc = dict(
        n_vc=256,  # N_VC, examples on which every client of the cohort trains in a round (client.epochs times)
        importance=False,  # reweight them as FedIR does
        server_lr=1.0,
        momentum=0.0,  # of the server, as FedAvgM's
        nesterov=False,
        weighting="uniform",
    )
    mimicked = dict(
        base="momentum",  # the centralised optimiser that clients mimic: sgd | momentum | adam
        beta1=0.9,
        beta2=0.99,  # adam's
        epsilon=1e-3,  # adam's
        v0=1.0,  # adam's first second moment: the smaller, the longer its first steps
        weighting="uniform",
    )
    config.mime = mimicked  # client.sgd.momentum and client.clip come on top: the paper has neither
    config.mimelite = mimicked
    config.power_of_choice = dict(
        chosen=2,  # m, who train: those with the largest loss of the cohort's d (cohort.size; cohort.sampling = "by_size")
        sample=0,  # examples on which a candidate's loss is measured; 0 = all
        weighting="uniform",
    )
    config.fedavgm = dict(
        server_lr=1.0,
        momentum=0.9,  # beta
        nesterov=False,
        weighting="examples",
    )
    adaptive = dict(
        server_lr=0.1,  # eta
        tau=1e-3,  # adaptivity
        fidelity="paper",  # paper | reference (the released trainer); sets what is None below
        v0=placeholder(float),  # initial second moment; paper: tau^2, reference: 0
        weighting="examples",
    )
    moments = dict(
        beta1=0.9,
        beta2=0.99,
        bias_correction=placeholder(bool),  # paper: no, reference: yes
    )
    config.fedadagrad = adaptive
    config.fedadam = adaptive | moments
    config.fedyogi = adaptive | moments
    config.fedbn = dict(weighting="uniform")
    config.silobn = dict(weighting="examples")
    config.fedper = dict(
        personal_layers=1,  # K_P, the last layers that stay with the client
        weighting="examples",
    )
    config.fedrep = dict(
        personal_layers=1,  # the last layers, the head, that stay with the client
        head_epochs=10,  # tau_h, epochs of the head in a round, before
        body_epochs=1,  # tau_phi, those of the rest; client.epochs isn't read
        weighting="uniform",
    )
    config.lg_fedavg = dict(
        local_layers=1,  # the first layers, that are the client's own
        start=0,  # rounds of FedAvg before
        weighting="uniform",
    )
    config.apfl = dict(
        alpha=0.5,  # share of the private model in the mixture at the start, 0 to 1
        adaptive=True,  # each client learns its share; False: it stays (the released code's default)
        alpha_decay=0.0,  # pulls the share to 0; the released code's 0.02 (0.01 alpha^2 in the loss)
        mix_with="global",  # between rounds the mixture is with the global model | own (the client's copy of its last round)
        weighting="uniform",
    )
    config.pfedme = dict(
        lam=15.0,  # lambda, the pull of the personal model theta to w; 0: w rests
        inner_steps=5,  # K, steps of theta on each mini-batch
        personal_lr=0.01,  # eta_p, of these steps; client.lr is eta, of w
        beta=1.0,  # w <- (1 - beta) w + beta mean
        weighting="uniform",
    )
    config.per_fedavg = dict(
        alpha=0.01,  # of the inner step, in training and when a client adapts; client.lr is the outer beta
        form="hf",  # fo (first-order, 2 gradients a step) | hf (Hessian-free, 4)
        delta=0.001,  # of the Hessian-free difference
        adapt_steps=1,  # of a client, on its training data, before its model is evaluated
        weighting="uniform",
    )
    config.pfedhn = dict(
        personal_layers=0,  # 0: pFedHN; the last layers that stay with the client: pFedHN-PC (1)
        embedding=0,  # width of a client's embedding; 0 = 1 + N / 4
        hidden=100,  # width of the hypernetwork
        hidden_layers=3,  # its linear layers after the first, without the heads
        start="hypernetwork",  # hypernetwork (PyTorch's initial values) | model (about the initial model; for norms)
        server_lr=0.01,  # pFedHN-PC: 0.05
        momentum=0.9,  # of the server's SGD
        weight_decay=1e-3,
        clip=50.0,  # largest norm of the server's gradient; 0 = no clipping
        weighting="uniform",
    )
    config.fedlgt = dict(
        tau=0.5,  # CA-MLE keeps a label unknown where the global model's probability is within epsilon of tau
        epsilon=0.02,
        fidelity="paper",  # paper | reference (the released code); sets what is None below
        first_sample_only=placeholder(bool),  # re-mask only a batch's first example; paper: no, reference: yes
        closed_interval=placeholder(bool),  # tau - epsilon and tau + epsilon count as unsure; paper: no, reference: yes
        weighting="examples",  # of uploads: examples | uniform | loss (softmax of the clients' last losses)
    )
    config.fml = dict(
        alpha=0.5,  # the labels' share in the private model's loss; the rest is the meme's predictions
        beta=0.5,  # the labels' share in the meme's loss
        temperature=1.0,  # of both predictions
        weighting="uniform",
    )
    config.fedproto = dict(
        lam=1.0,  # lambda, the pull of the features to their class's global prototype
        weighting="uniform",  # of the clients, in a prototype: uniform | examples (of that class)
        inference="head",  # head | prototype (the nearest one)
    )
    config.data_sharing = dict(
        public="",  # name of the client whose examples are shared; "" = the first
        alpha=0.5,  # the part of them that each other client gets
        warmup_rounds=1,  # in which they alone are trained on
        weighting="examples",
    )
    config.fedmd = dict(
        public="",  # name of the client whose examples are public; "" = the first
        alignment=5000,  # public examples on which a round's logits are agreed on, drawn anew in each
        pretrain_epochs=20,  # of a client's first training, on the public examples
        private_epochs=25,  # and then on its own
        digest_epochs=1,  # on the agreed logits, in each round
        digest_batch_size=256,  # of these and of the first training on the public examples
    )
    config.fd = dict(
        gamma=0.1,  # weight of the others' predictions
        schedule="constant",  # constant | notes (they have weight a = 1 / (round + 2), the labels 1 - a)
        fidelity="paper",  # paper | reference (PFLlib's port: logits, the client's own among them)
    )
    config.faug = dict(
        base="fd",  # what trains on the filled-up data: fd | fedavg
        gamma=0.1,  # of FD
        schedule="constant",  # of FD
        weighting="examples",  # of FedAvg, by the clients' own examples
        seeds=10,  # the most examples of one label that a client sends to the server
        lacking=0.5,  # a label with fewer than this share of a client's mean label is one of its targets
        redundant=2,  # labels sent besides the targets, to hide them
        per_label=0,  # no label is filled up beyond so many examples; 0 = beyond the client's largest label
        gan_steps=2000,  # of the server's conditional GAN
        gan_batch_size=64,
        gan_lr=2e-4,
    )
    config.ifca = dict(
        clusters=2,  # J, global models
        shared_layers=0,  # how many of the first layers all of them have in common
        weighting="examples",
    )
    config.crt = dict(
        start=15,  # rounds of FedAvg; the rest trains a new classifier on the frozen backbone
        classifier="retrain",  # retrain (cRT) | normalise (tau-norm: FedAvg all along, each class's weights scaled)
        retrain="federated",  # the new classifier: federated | local (each client's own)
        sampler="class_balanced",  # of the second stage, see client.sampler
        tau=0.7,  # of tau-norm; 0 = the weights as they are
        fidelity="paper",  # paper | reference (the frozen backbone's batch-norm statistics go on drifting)
        weighting="examples",
    )
    config.ditto = dict(
        lam=1.0,  # lambda, the pull of the personal model to the global one
        weighting="uniform",
    )
    config.prrfl = dict(
        fidelity="paper",  # paper | reference (the released code); sets what is None below
        pfa=True,  # False: the weighted mean instead of progressive Fourier aggregation
        det=True,  # False: no personal model, the client uses what the server makes for it
        cpa_weight=1.0,  # of the conjoint prototype-aligned loss; 0 = none (v1)
        plain_weight=0.0,  # of the loss that config.loss names, besides it; without CPA that loss has weight 1
        components="amplitude_phase",  # of the spectrum that is aggregated: amplitude (v1) | amplitude_phase (v2) | complex
        classwise=True,  # the classifier's spectrum class by class (v2); False: as one matrix (v1)
        r0=0.7,  # share of the frequencies that is aggregated in round 0; it grows to
        final_rate=0.95,  # (nearly) this in the last
        symmetric=placeholder(bool),  # the band holds -b .. b; paper: yes, reference: no (-b .. b - 1)
        circular=placeholder(bool),  # phases averaged on the circle; paper: yes, reference: no (as numbers)
        share_short=placeholder(bool),  # axes of length 1 and 2 are shared; paper: yes, reference: no
        share_dc=placeholder(bool),  # the zero frequency is always shared; paper: yes, reference: no
        divisor=placeholder(int),  # of the sums over clients; 0 = their weights' sum; paper: 0, reference: 4
        weighting="uniform",  # of the clients: uniform | examples
        lambda1=0.7,  # Recover while the deputy's score is under this share of the personal model's
        lambda2=0.9,  # Sublimate once it has this share
        score_on=placeholder(str),  # what both are scored on: validation (paper) | train (reference)
        distill="kl",  # kl | reverse_kl | mse (between softmax values; segmentation)
        distill_weight=1.0,  # segmentation: 10
        temperature=1.0,  # of the distillation
        optimizer="fresh",  # fresh each round | kept
        beta=0.8,  # exponent of CPA's mitigation of frequent classes
        tau=3.0,  # of CPA's refinement, at least 1
        start=15,  # first round with refinement
        prototype="feature",  # feature | logit
        global_prototype="gaussian",  # gaussian | avg
        exchange=placeholder(
            str
        ),  # prototypes are exchanged with the models, round (paper), or after each epoch (reference)
        reset=placeholder(bool),  # each round begins with prototypes of ones; paper: no, reference: yes
    )
    config.kd3a = dict(  # a round is one epoch of the paper
        target="",  # name of the client whose labels are not used; "" = the last
        fidelity="paper",  # paper | reference (the released code); sets what is None below
        epoch_samples=0,  # examples of a party in an epoch, never more than it has; 0 = all
        communications=1.0,  # r for each so many examples: 1 or more, or 0.2 or 0.5; config.rounds counts communications
        gate=(0.9, 0.95),  # confidence gate at the first round, and after the last
        votes=placeholder(str),  # soft (paper) | hard (reference) | sum | max | min | mean | median | mode
        teachers=placeholder(str),  # the voting models run in mode evaluation (paper) | train (reference)
        mixup=2.0,  # a of Beta(a, a); 0 = no mixup
        mixup_weights=placeholder(bool),  # a mixed label keeps its own image's weight; paper: yes, reference: no
        focus=placeholder(str),  # leave_one_out (paper) | shapley (reference)
        permutations=0,  # orders of the sources that the Shapley value samples; 0 = exact up to 12 sources
        target_share=placeholder(str),  # the target's domain weight by examples (paper) | confidence (reference)
        by_examples=placeholder(bool),  # a source's focus counts times its examples; paper: yes, reference: no
        momentum=0.9,  # share of the old domain weights
        rounded=placeholder(bool),  # domain weights have 4 digits; paper: no, reference: yes
        heads=placeholder(str),  # shared (paper) | own (reference: each party's classifier stays with it)
        bn_mmd=True,  # batch norm's running statistics are averaged too; False: they stay
        second_moments=placeholder(bool),  # their second moments, not variances, are; paper: yes, reference: no
        poisoned="",  # name of a source with wrong labels
        poison=0.0,  # share of them
        det=False,  # personal models and deputies; what follows is theirs
        sub_epochs=5,  # of a round, each with a stage of its own
        all_data=False,  # each sub-epoch has as many batches as a round otherwise ("adddata")
        stages="det",  # det | recover_exchange | recover | exchange | fixed (recover once, then exchange)
        lambda1=0.7,  # Recover while the deputy's score is under this share of the personal model's
        lambda2=0.9,  # Sublimate once it has this share
        score_on=placeholder(str),  # what both are scored on: validation (paper) | train (reference)
        temperature=1.0,  # T of the KL terms
        fade_personal="none",  # weights of its two terms: none (1, 1) | min (labels' falls, KL's grows) | max (reverse)
        fade_deputy="none",
        fade_rounds=40,  # rounds until the falling weight is 0; it goes on falling
        recover_weights=(1.0, 1.0),  # of the deputy's labels and KL in Recover
        upload="deputy",  # deputy | personal
        personal_target=False,  # the target has a personal model too
        target_sub_epochs=5,  # of its pass
        target_kl=1.0,  # weight of its KL terms
    )
    config.fedhealth = dict(
        public="",  # name of the client whose data are the server's; "" = the first
        cloud_rounds=5,  # in which the server trains on them; later the users do
        eta=0.01,  # weight of the CORAL loss
        tuned_layers=1,  # how many of the last layers are transferred; with 1 the features are frozen, and CORAL has no effect
        transfer_epochs=0,  # 0 = client.epochs
        weighting="examples",
    )
    return config
